"""Dataclasses from plain JSON or YAML values: unknown keys and wrong types are errors that say where.

YAML reads `3e-4` as a string and JSON knows no tuples, so values are converted by the field's declared type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .errors import InputError, unknown_name

Config = TypeVar("Config")


def from_plain(kind: type[Config], values: Any, where: str = "") -> Config:
    """An instance of the dataclass `kind` from a mapping of plain values; `where` names it in errors ("recipe.yaml").

    Raises:
        InputError: Unknown key (the nearest is named), missing key, or a value that is not of the field's type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: a mapping of keys to values expected, got {values!r}")
    types = get_type_hints(kind)
    known: dict[str, Field[Any]] = {field.name: field for field in fields(cast(Any, kind)) if field.init}
    for key in values:
        if key not in known:
            raise unknown_name(f"key in {where or kind.__name__}", str(key), known)
    missing = [
        name
        for name, field in known.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise InputError(f"{where}: {missing[0]!r} is missing")
    return kind(**{key: _convert(types[key], value, f"{where}: {key}") for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`; the few kinds that configurations use."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return from_plain(cast(type[Any], kind), value, where)
    if origin in (Union, UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise unknown_name(f"value of {where}", str(value), map(str, arguments))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if value in list(kind):
            return kind(value)
        raise unknown_name(f"value of {where}", str(value), map(str, kind))
    if origin in (list, tuple, Sequence):
        return _convert_sequence(origin, arguments, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: a mapping expected, got {value!r}")
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _convert_scalar(kind, value, where)


def _convert_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    choices = [kind for kind in kinds if kind is not NoneType]
    for kind in choices[:-1]:
        try:
            return _convert(kind, value, where)
        except InputError:
            continue
    return _convert(choices[-1], value, where)


def _convert_sequence(origin: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(f"{where}: a list expected, got {value!r}")
    is_fixed = origin is tuple and arguments[-1] is not Ellipsis
    if is_fixed and len(value) != len(arguments):
        raise InputError(f"{where}: {len(arguments)} values expected, got {len(value)}")
    kinds = arguments if is_fixed else (arguments[0],) * len(value)
    items = [_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True)]
    return items if origin is list else tuple(items)


def _convert_scalar(kind: Any, value: Any, where: str) -> Any:
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and not isinstance(value, bool) and int(value) == float(value):
            return int(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is str and isinstance(value, str):
            return value
    except (TypeError, ValueError):
        pass
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    raise InputError(f"{where}: {names.get(kind, kind)} expected, got {value!r}")
