"""Interventions on scenes with critters: changed copies, in which one thing is different and all else the same.

Labels follow from the rule.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from ..common.errors import InputError
from .critter_rules import SLOTS, find_factor, find_slot, find_variant
from .critter_scenes import PALETTES, Scenes, draw_background, drawn_again, room


def remove(scenes: Scenes, slot: str) -> Scenes:
    """The scenes without the part in `slot`."""
    variants = scenes.variants.copy()
    variants[:, find_slot(slot)] = -1
    return replace(scenes, variants=variants)


def keep_only(scenes: Scenes, slots: Iterable[str]) -> Scenes:
    """The scenes without the parts in other slots than these; the body stays."""
    kept = np.zeros(len(SLOTS), dtype=bool)
    kept[[find_slot(slot) for slot in slots]] = True
    return replace(scenes, variants=np.where(kept, scenes.variants, -1))


def swap(scenes: Scenes, factor: str, variant: str | ArrayLike) -> Scenes:
    """The scenes with another variant of a slot's part, or of another factor (see `FACTORS`).

    `variant` is a name, or an index for every scene (n,), as in a rule's codes. A removed part comes back when its own
    variant is set. Labels follow from the rule.
    """
    if isinstance(variant, str):
        values = np.full(len(scenes), find_variant(factor, variant))
    else:
        known = len(find_factor(factor).variants)
        values = np.broadcast_to(np.asarray(variant, dtype=np.int64), len(scenes))
        if ((values < 0) | (values >= known)).any():
            raise InputError(f"variants of {factor} must lie between 0 and {known - 1}")
    if factor not in SLOTS:
        return replace(scenes, **{factor: values})
    variants = scenes.variants.copy()
    variants[:, find_slot(factor)] = values
    return replace(scenes, variants=variants)


def remove_tag(scenes: Scenes) -> Scenes:
    """The scenes without the confounding tag."""
    return replace(scenes, tag=np.full_like(scenes.tag, -1))


def drop_distractors(scenes: Scenes) -> Scenes:
    """The scenes without distractors."""
    return replace(scenes, distractors=np.full_like(scenes.distractors, -1))


def recolour(scenes: Scenes, slots: Iterable[str], seed: int) -> Scenes:
    """The scenes with the parts in `slots` in another colour, drawn by `seed` from the palettes of all critters."""
    draw = drawn_again(scenes, seed, "recolour")
    fills = scenes.fills.copy()
    places = [1 + find_slot(slot) for slot in slots]
    colours = PALETTES.reshape(-1, 3)[draw.integers("colours", PALETTES.shape[0] * PALETTES.shape[1], len(places))]
    fills[:, places] = colours
    return replace(scenes, fills=fills)


def move(scenes: Scenes, seed: int) -> Scenes:
    """The scenes with the critter at another place, drawn by `seed`, where all of it can be seen."""
    draw = drawn_again(scenes, seed, "move")
    low, high = room(scenes.unit, scenes.mirrored)
    return replace(scenes, position=low + (high - low) * draw.uniform("position", 0.0, 1.0, 2))


def replace_background(scenes: Scenes, seed: int) -> Scenes:
    """The scenes before another background with other distractors; critter and tag stay as they are."""
    return replace(scenes, **draw_background(drawn_again(scenes, seed, "background")))
