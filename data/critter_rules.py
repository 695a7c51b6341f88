"""What a critter is made of, and the rules that turn its parts into a class.

A critter has five slots for parts. Its *factors* are what can be chosen about them: the shape of the part in each
slot, and three things beside shape. A rule is a table of codes over a few factors, one class a code. Everything else
about a rule (class names, labels, which parts suffice) is worked out from that table.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.errors import unknown_name

if TYPE_CHECKING:
    from .critter_scenes import Scenes

SLOTS = ("head", "wing", "tail", "foot", "mark")


class Factor(NamedTuple):
    """Something about a critter that varies; it is seen only while the parts in all its `slots` are there."""

    slots: tuple[str, ...]
    variants: tuple[str, ...]


FACTORS = {
    "head": Factor(("head",), ("horned", "eared", "crested", "knobbed")),
    "wing": Factor(("wing",), ("leaf", "bat", "petal", "feather")),
    "tail": Factor(("tail",), ("fan", "curl", "bolt", "puff")),
    "foot": Factor(("foot",), ("boot", "hoof", "web", "ball")),
    "mark": Factor(("mark",), ("star", "moon", "heart", "ring")),
    "texture": Factor(("wing",), ("plain", "striped", "dotted", "chequered")),
    "count": Factor(("foot",), ("one-foot", "two-feet", "three-feet", "four-feet")),
    "side": Factor(("wing", "mark"), ("mark-ahead", "mark-behind")),
}


@dataclass(frozen=True)
class Rule:
    """Classes as codes over factors: class c is the critters whose `factors` have the variants `codes[c]`."""

    factors: tuple[str, ...]
    codes: tuple[tuple[int, ...], ...]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names: the variants of each code, joined by dashes."""
        return tuple(
            "-".join(FACTORS[factor].variants[value] for factor, value in zip(self.factors, code, strict=True))
            for code in self.codes
        )

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The slots whose parts are the evidence proper, in the order of `SLOTS`."""
        used = {slot for factor in self.factors for slot in FACTORS[factor].slots}
        return tuple(slot for slot in SLOTS if slot in used)

    @cached_property
    def minimal_sufficient(self) -> tuple[frozenset[str], ...]:
        """The smallest sets of slots whose parts alone settle the class, whichever it is."""
        found: list[frozenset[str]] = []
        for size in range(len(self.slots) + 1):
            for kept in map(frozenset, combinations(self.slots, size)):
                if not any(smaller <= kept for smaller in found) and self._suffices(kept):
                    found.append(kept)
        return tuple(found)

    def label(self, scenes: "Scenes") -> NDArray[np.int64]:
        """Class of each scene (n,); -1 where the parts that are left, or their variants, do not settle it."""
        return self._decide(np.stack([scenes.factor(name) for name in self.factors], axis=1))

    def _decide(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class for variants `n factor`, -1 for those that cannot be seen: the only code that agrees with the rest."""
        codes = np.array(self.codes)
        agrees = ((values[:, None] == codes) | (values[:, None] == -1)).all(axis=2)
        return np.where(agrees.sum(axis=1) == 1, agrees.argmax(axis=1), -1)

    def _suffices(self, kept: frozenset[str]) -> bool:
        seen = [kept.issuperset(FACTORS[factor].slots) for factor in self.factors]
        return bool((self._decide(np.where(seen, np.array(self.codes), -1)) >= 0).all())


RULES = {
    # Each head and each tail occurs in two classes, so that neither alone settles one.
    "conjunction": Rule(("head", "tail"), tuple((head, (head + step) % 4) for head in range(4) for step in range(2))),
    "redundant": Rule(("wing", "foot"), tuple((value, value) for value in range(4))),
    "mark": Rule(("mark",), tuple((value,) for value in range(4))),
    "texture": Rule(("texture",), tuple((value,) for value in range(4))),
    "relation": Rule(("side",), tuple((value,) for value in range(2))),
    "count": Rule(("count",), tuple((value,) for value in range(4))),
}


def find_rule(name: str) -> Rule:
    """The rule of that name; an `InputError` if there is none."""
    if name not in RULES:
        raise unknown_name("critter rule", name, RULES)
    return RULES[name]


def class_attributes(rule: str) -> tuple[tuple[str, ...], list[list[int]]]:
    """Names of the attributes by which a rule's classes differ, and for each class which it has, as zeros and ones.

    An attribute is a variant of one of the rule's factors, as head `concepts` takes them (`attributes`).

    Raises:
        InputError: No such rule.
    """
    found = find_rule(rule)
    variants = [FACTORS[name].variants for name in found.factors]
    names = tuple(name for own in variants for name in own)
    return names, [
        [int(code == place) for code, own in zip(codes, variants, strict=True) for place in range(len(own))]
        for codes in found.codes
    ]


def find_slot(name: str) -> int:
    """Index of the slot of that name; an `InputError` if there is none."""
    if name not in SLOTS:
        raise unknown_name("critter slot", name, SLOTS)
    return SLOTS.index(name)


def find_factor(name: str) -> Factor:
    """The factor of that name, which may be a slot's; an `InputError` if there is none."""
    if name not in FACTORS:
        raise unknown_name("critter slot or factor", name, FACTORS)
    return FACTORS[name]


def find_variant(factor: str, variant: str) -> int:
    """Index of a factor's variant by name; an `InputError` if there is no such factor or variant."""
    variants = find_factor(factor).variants
    if variant not in variants:
        raise unknown_name(f"variant of {factor}", variant, variants)
    return variants.index(variant)
