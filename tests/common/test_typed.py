"""Dataclasses from plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import pytest

from glasszoo.common.errors import InputError
from glasszoo.common.typed import from_plain


@dataclass
class Inner:
    rate: float
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Outer:
    inner: Inner
    count: int = 1
    name: str | None = None
    mode: Literal["fast", "slow"] = "fast"
    pair: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    patterns: Sequence[str] = ()
    phases: tuple[Inner, ...] | None = None
    size: tuple[int, int] | int | None = None
    on: bool = True
    anything: Any = None


def test_values_take_the_declared_types() -> None:
    outer = from_plain(
        Outer,
        {
            "inner": {"rate": "3e-4", "scales": {"head.*": 10}},
            "count": 2.0,
            "pair": [0, 1],
            "names": ["a"],
            "patterns": ["*"],
            "phases": [{"rate": 1}],
            "size": [2, 3],
            "anything": {"x": [1]},
        },
    )
    assert outer == Outer(
        Inner(3e-4, {"head.*": 10.0}),
        2,
        None,
        "fast",
        (0.0, 1.0),
        ("a",),
        ("*",),
        (Inner(1.0),),
        (2, 3),
        True,
        {"x": [1]},
    )
    assert isinstance(outer.inner.rate, float) and isinstance(outer.count, int)
    assert from_plain(Outer, {"inner": {"rate": 1}, "size": 4}).size == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"rate": 1}, "cuont": 2}, "unknown key in here 'cuont': did you mean 'count'"),
        ({"inner": {"rat": 1}}, "unknown key in here: inner 'rat': did you mean 'rate'"),
        ({}, "here: 'inner' is missing"),
        ({"inner": {}}, "here: inner: 'rate' is missing"),
        ({"inner": {"rate": "fast"}}, "here: inner: rate: a number expected, got 'fast'"),
        ({"inner": {"rate": True}}, "a number expected, got True"),
        ({"inner": {"rate": 1}, "count": 1.5}, "count: a whole number expected, got 1.5"),
        ({"inner": {"rate": 1}, "name": 3}, "name: a text expected, got 3"),
        ({"inner": {"rate": 1}, "on": "yes"}, "on: true or false expected, got 'yes'"),
        ({"inner": {"rate": 1}, "mode": "slwo"}, "unknown value of here: mode 'slwo': did you mean 'slow'"),
        ({"inner": {"rate": 1}, "pair": [1]}, "pair: 2 values expected, got 1"),
        ({"inner": {"rate": 1}, "names": "abc"}, "names: a list expected, got 'abc'"),
        ({"inner": [1]}, r"here: inner: a mapping of keys to values expected, got \[1\]"),
        ({"inner": {"rate": 1, "scales": [1]}}, r"scales: a mapping expected, got \[1\]"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_plain(Outer, values, "here")


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Painted:
    colour: Colour


def test_an_enumeration_takes_its_values_alone() -> None:
    assert from_plain(Painted, {"colour": "blue"}).colour is Colour.BLUE
    with pytest.raises(InputError, match="unknown value of x: colour 'rad': did you mean 'red'"):
        from_plain(Painted, {"colour": "rad"}, "x")
