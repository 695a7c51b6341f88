"""Heads by name."""

import inspect
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any, TypeVar

from ..common.errors import InputError, unknown_name
from .base import Head

_HEADS: dict[str, type[Head]] = {}

HeadClass = TypeVar("HeadClass", bound=type[Head])


def register_head(name: str) -> Callable[[HeadClass], HeadClass]:
    """Class decorator: make a `Head` known as `name`.

    Raises:
        ValueError: The name is taken.
    """

    def register(head: HeadClass) -> HeadClass:
        if name in _HEADS:
            raise ValueError(f"head name {name!r} is taken by {_HEADS[name].__qualname__}")
        _HEADS[name] = head
        return head

    return register


def list_heads(pattern: str = "*") -> list[str]:
    """Names of the registered heads that match `pattern` (fnmatch), sorted."""
    return sorted(name for name in _HEADS if fnmatch(name, pattern))


def head_class(name: str) -> type[Head]:
    """The class registered as `name`.

    Raises:
        InputError: No such head; the nearest names are listed.
    """
    if name not in _HEADS:
        raise unknown_name("head", name, _HEADS)
    return _HEADS[name]


def wanted_stages(name: str, **options: Any) -> tuple[int, ...]:
    """The backbone's stages that the head `name` looks at, shallow to deep, counted from the end (-1: final features).

    Raises:
        InputError: No such head, or an option that the head does not have or not with this value.
    """
    head = head_class(name)
    parameters = inspect.signature(head).parameters.values()
    defaults = {known.name: known.default for known in parameters if known.kind is known.KEYWORD_ONLY}
    for option in options:
        if option not in defaults:
            raise unknown_name(f"option of head {name!r}", option, defaults)
    stages = head.wanted_stages(defaults | options)
    if not stages or list(stages) != sorted(set(stages)) or stages[-1] >= 0:
        raise InputError(f"head {name!r} asks for stages {stages}: they count from the end, -1 is the final features")
    return stages


def create_head(name: str, num_features: int | list[int], num_classes: int, **options: Any) -> Head:
    """Build the head `name` for features of `num_features` channels: one number a stage, if it wants several.

    Raises:
        InputError: No such head, fewer than one class, an option that the head does not have, or another number of
            stages than it wants.
    """
    head, stages = head_class(name), wanted_stages(name, **options)
    if num_classes < 1:
        raise InputError(f"num_classes={num_classes}: a head needs at least one class")
    if len(stages) != (1 if isinstance(num_features, int) else len(num_features)):
        raise InputError(f"head {name!r} looks at {len(stages)} stages: num_features={num_features} does not fit")
    return head(num_features, num_classes, **options)
