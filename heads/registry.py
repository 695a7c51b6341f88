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


def create_head(name: str, num_features: int, num_classes: int, **options: Any) -> Head:
    """Build the head `name` for features of `num_features` channels.

    Raises:
        InputError: No such head, fewer than one class, or an option that the head does not have.
    """
    head = head_class(name)
    if num_classes < 1:
        raise InputError(f"num_classes={num_classes}: a head needs at least one class")
    parameters = inspect.signature(head).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of head {name!r}", option, known)
    return head(num_features, num_classes, **options)
