"""Scenes with critters as arrays of numbers, drawn from counters.

Every number of scene i is a hash of (seed, split, i, what the number is for), so that a scene is the same alone or in
any batch, and on any machine. Interventions (`critter_interventions`) take scenes and return changed copies.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.errors import InputError, unknown_name
from .critter_rules import FACTORS, SLOTS, find_factor, find_rule, find_slot
from .signed_distance import Field

Integers: TypeAlias = NDArray[np.int64]
Split: TypeAlias = Literal["train", "test"]
Tag: TypeAlias = Literal["aligned", "conflicting", "absent"]
ObjectSize: TypeAlias = Literal["small", "medium", "large", "mixed"]

BACKGROUNDS = ("noise", "gradient", "stripes", "hills")
DISTRACTORS = ("bubble", "stone", "leaf")
MOST_DISTRACTORS = 4
LARGEST_UNIT = 0.22  # of the image's side; a unit is about half the length of the body
_SIZES = {"small": 0.5, "medium": 0.7, "large": 1.0}  # of critters, as shares of the usual
LARGEST_DISTRACTOR = 0.085  # of the image's side, its radius
LARGEST_TURN = 0.07  # tan(angle / 2), about 8 degrees


def colour_table(table: str) -> Field:
    """Colours `row column 3` (0 to 1) from rows of hexadecimal codes."""
    rows = [[bytes.fromhex(code) for code in row.split()] for row in table.strip().splitlines()]
    return np.array([[list(code) for code in row] for row in rows], dtype=np.float32) / 255.0


PALETTES = colour_table("""
    e76f51 f4a261 e9c46a 2a9d8f 457b9d
    ef476f ffc94d 1fc8a0 2f8fc0 8d6cab
    f28482 f6bd60 84a59d 6d83b3 d88c7a
    ff8fa3 f7a072 6ecbe0 b28dff 6c70d0
    6a994e a7c957 dda15e c9743a e0b45c
    6fbfe0 219ebc ffb703 f98a2b e07a5f
    9b6de5 f06bb5 f7cf46 2fb4ee 24c3a5
    b892d6 ff9dc0 8fbcf0 8093f1 f29bd4
    e07a5f 81b29a f2b96f 7a76b0 d8829a
    66a182 8cc084 f7b267 f2645c 4d86b0
    c06c84 eaac8b 7d6894 e8747a 6ea3ad
    3d9a8b f2a497 f7c66a 7f95d1 e3779e
""")

_BACKDROPS = colour_table("""
    eef6fb d3e6f3 b7dbb0
    eff8ee d5ecd8 c4d99a
    fff3e6 fbdcc4 f3c294
    f5effa e0d6f0 c3b8e2
    fff8e1 f6e7b8 cfd99c
    fdeef0 f6d3da e7b4bd
    e6f7f5 c5e8e4 9ed3c8
    fdf3f0 f3dccb d8b98f
    d9e8ff b9d0f2 a2c7a0
    34406b 465a8c 2b3757
    2f5f66 417a80 27505a
    5a4668 75608a 4a3a58
""")

_PALE_MARKS = colour_table("fff4d6 ffffff ffe27a ffd9e4")[0]
_DEEP_MARKS = colour_table("4a3b63 7a2f4b 2c4a6e 5b3a29")[0]


@dataclass(frozen=True)
class Scenes:
    """n scenes; lengths are shares of the image's side, colours run from 0 to 1, y points down.

    Parts stand in the order of `SLOTS`; colours of parts come after the body's. `stations` are the places along the
    body, in units, where wing and mark sit: the rear one first.
    """

    key: NDArray[np.uint64]  # n, what every number of the scene was drawn from
    variants: Integers  # n slot, -1 where the part is removed
    texture: Integers  # n
    count: Integers  # n, feet less one
    side: Integers  # n, 0 where the mark is ahead of the wing
    stations: Field  # n 2
    body: Field  # n 3: half length, half height (units), how much thicker the rear is than the front
    fills: Field  # n 6 3
    accent: Field  # n 3
    position: Field  # n 2, of the body's centre
    unit: Field  # n
    turn: Field  # n, tan(angle / 2)
    mirrored: NDArray[np.bool_]  # n, True where the critter looks to the left
    background: Integers  # n, index into BACKGROUNDS
    backdrop: Field  # n 3 3, the background's colours
    pattern: Field  # n 4: direction, frequency, phase and height of the background's pattern, each 0 to 1
    lattice: Field  # n 9 9, values of the noise
    distractors: Integers  # n MOST_DISTRACTORS, index into DISTRACTORS, -1 for none
    distractor_shapes: Field  # n MOST_DISTRACTORS 4: x, y, radius, tan(angle / 2)
    distractor_fills: Field  # n MOST_DISTRACTORS 3
    tag: Integers  # n, the class whose tag is shown, -1 for none
    tag_position: Field  # n 2

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: Any) -> "Scenes":
        """The scenes of these rows: a slice, or anything that indexes an array."""
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def factor(self, name: str) -> Integers:
        """Variant of a factor (n,); -1 where a part that it is seen by is removed."""
        slots = [find_slot(slot) for slot in find_factor(name).slots]
        values = self.variants[:, slots[0]] if name in SLOTS else getattr(self, name)
        return np.where((self.variants[:, slots] >= 0).all(axis=1), values, -1)


class Draw:
    """Random numbers for scenes: each a hash of the scene's key, the purpose and, in an array, the place."""

    def __init__(self, key: NDArray[np.uint64]) -> None:
        self.key = key

    def bits(self, purpose: str, *shape: int) -> NDArray[np.uint64]:
        places = np.arange(int(np.prod(shape, dtype=int)), dtype=np.uint64) + np.uint64(crc32(purpose.encode()) << 32)
        return _mixed(self.key[:, None] ^ places).reshape(len(self.key), *shape)

    def uniform(self, purpose: str, low: float, high: float, *shape: int) -> Field:
        share = (self.bits(purpose, *shape) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return share * np.float32(high - low) + np.float32(low)

    def integers(self, purpose: str, below: int, *shape: int) -> Integers:
        return ((self.bits(purpose, *shape) >> np.uint64(33)) % np.uint64(below)).astype(np.int64)

    def order(self, purpose: str, length: int) -> Integers:
        return self.bits(purpose, length).argsort(axis=1, kind="stable")


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection that spreads each bit over all others."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _keys(numbers: Integers, seed: int, stream: str) -> NDArray[np.uint64]:
    start = _mixed(np.array([seed % 2**64], dtype=np.uint64))
    return _mixed(_mixed(start ^ np.uint64(crc32(stream.encode()))) ^ numbers.astype(np.uint64))


def draw_labels(indices: ArrayLike, seed: int, *, split: Split = "train", rule: str = "conjunction") -> Integers:
    """Classes of the images with these indices (n,), without their scenes.

    Each run of as many images as there are classes holds every class once, so that any count is balanced.
    """
    if split not in get_args(Split):
        raise unknown_name("critter split", split, get_args(Split))
    classes = len(find_rule(rule).codes)
    numbers = np.asarray(indices, dtype=np.int64)
    start = Draw(_keys(numbers // classes, seed, f"{split} classes")).integers("start", classes)
    return (numbers + start) % classes


def sample_scenes(
    indices: ArrayLike,
    seed: int,
    *,
    split: Split = "train",
    rule: str = "conjunction",
    tag_correlation: float | None = None,
    tag: Tag | None = None,
    object_size: ObjectSize = "large",
) -> Scenes:
    """The scenes with these indices (n,). Neither the rule's other slots nor anything else depends on the tag.

    `tag_correlation` (0 to 1) shows the tag of the image's own class with that probability, else that of any class.
    `tag` shows always the own ("aligned"), always another's ("conflicting") or none; it overrides `tag_correlation`.
    `object_size`: "medium" critters have 0.7 of the usual length, "small" ones half; "mixed" has a third of each.
    """
    if tag is not None and tag not in get_args(Tag):
        raise unknown_name("critter tag", tag, get_args(Tag))
    if object_size not in get_args(ObjectSize):
        raise unknown_name("critter size", object_size, get_args(ObjectSize))
    if tag_correlation is not None and not 0.0 <= tag_correlation <= 1.0:
        raise InputError(f"tag_correlation must lie between 0 and 1, not {tag_correlation}")
    labels = draw_labels(indices, seed, split=split, rule=rule)
    draw = Draw(_keys(np.asarray(indices, dtype=np.int64), seed, split))
    factors: dict[str, Any] = {name: draw.integers(name, len(factor.variants)) for name, factor in FACTORS.items()}
    chosen = find_rule(rule)
    factors.update(zip(chosen.factors, np.array(chosen.codes)[labels].T, strict=True))
    inset = draw.uniform("tag inset", 0.1, 0.125, 2)
    return Scenes(
        key=draw.key,
        variants=np.stack([factors.pop(slot) for slot in SLOTS], axis=1),
        **factors,
        **_draw_critter(draw, object_size),
        **draw_background(draw),
        tag=_draw_tag(draw, labels, len(chosen.codes), tag_correlation, tag),
        tag_position=np.where(draw.integers("tag corner", 2, 2) == 1, 1.0 - inset, inset),
    )


def _draw_critter(draw: Draw, object_size: ObjectSize) -> dict[str, Any]:
    """Everything about the critters that no rule uses."""
    rows = np.arange(len(draw.key))[:, None]
    palette = PALETTES[draw.integers("palette", len(PALETTES))][rows, draw.order("palette order", 5)]
    palette = np.clip(palette + draw.uniform("palette jitter", -0.04, 0.04, 5, 3), 0.0, 1.0)
    body, wing, tail, foot, accent = np.moveaxis(palette, 1, 0)
    bright = brightness(body)[:, None] > 0.62
    choice = draw.integers("mark colour", len(_PALE_MARKS))
    mark = np.where(bright, _DEEP_MARKS[choice], _PALE_MARKS[choice])
    unit = draw.uniform("unit", 0.19, LARGEST_UNIT) * _scales(draw, object_size)
    mirrored = draw.integers("mirrored", 2) == 1
    low, high = room(unit, mirrored)
    rear = draw.uniform("rear station", -0.5, 0.0)
    return {
        "stations": np.stack([rear, rear + draw.uniform("station gap", 0.24, 0.34)], axis=1),
        "body": np.stack(
            [
                draw.uniform("body length", 0.98, 1.1),
                draw.uniform("body height", 0.76, 0.86),
                draw.uniform("body taper", -0.05, 0.2),
            ],
            axis=1,
        ),
        "fills": np.stack([body, body, wing, tail, foot, mark], axis=1),
        "accent": accent,
        "position": low + (high - low) * draw.uniform("position", 0.0, 1.0, 2),
        "unit": unit,
        "turn": draw.uniform("turn", -LARGEST_TURN, LARGEST_TURN),
        "mirrored": mirrored,
    }


def room(unit: Field, mirrored: NDArray[np.bool_]) -> tuple[Field, Field]:
    """The least and the largest x and y (n 2) of a body's centre with which all of the critter can be seen."""
    # As far as the longest tail, the farthest muzzle, the longest ears and the feet reach.
    behind, ahead, above, below = 1.95 * unit, 1.85 * unit, 2.1 * unit, 1.3 * unit
    left, right = np.where(mirrored, ahead, behind), np.where(mirrored, behind, ahead)
    return np.stack([left, above], axis=1), np.stack([1.0 - right, 1.0 - below], axis=1)


def _scales(draw: Draw, object_size: ObjectSize) -> Field:
    scales = np.array(list(_SIZES.values()), dtype=np.float32)
    if object_size == "mixed":
        return scales[draw.integers("object size", len(scales))]
    return np.full(len(draw.key), _SIZES[object_size], dtype=np.float32)


def brightness(colours: Field) -> Field:
    """Perceived brightness (0 to 1) of colours `... 3`."""
    return colours[..., 0] * 0.3 + colours[..., 1] * 0.59 + colours[..., 2] * 0.11


def draw_background(draw: Draw) -> dict[str, Any]:
    """Background and distractors."""
    count, rows = MOST_DISTRACTORS, np.arange(len(draw.key))[:, None]
    # Distractors lie in different cells of a 3 x 3 grid, never in the middle one, which the critter would hide.
    cells = draw.order("distractor cells", 8)[:, :count]
    cells = cells + (cells >= 4)
    corners = np.stack([cells % 3, cells // 3], axis=2).astype(np.float32)
    shapes = [
        (corners + draw.uniform("distractor places", 0.2, 0.8, count, 2)) * np.float32(1 / 3),
        draw.uniform("distractor radii", 0.045, LARGEST_DISTRACTOR, count, 1),
        draw.uniform("distractor turns", -1.0, 1.0, count, 1),
    ]
    kinds = draw.integers("distractor kinds", len(DISTRACTORS), count)
    shown = draw.integers("distractor count", 3)[:, None] + 2 > np.arange(count)
    palette = PALETTES[draw.integers("distractor palette", len(PALETTES))]
    fills = palette[rows, draw.integers("distractor fills", 5, count)]
    backdrop = _BACKDROPS[draw.integers("backdrop", len(_BACKDROPS))]
    return {
        "background": draw.integers("background", len(BACKGROUNDS)),
        "backdrop": np.clip(backdrop + draw.uniform("backdrop jitter", -0.03, 0.03, 1, 3), 0.0, 1.0),
        "pattern": draw.uniform("pattern", 0.0, 1.0, 4),
        "lattice": draw.uniform("lattice", 0.0, 1.0, 9, 9),
        "distractors": np.where(shown, kinds, -1),
        "distractor_shapes": np.concatenate(shapes, axis=2),
        "distractor_fills": np.clip(fills + draw.uniform("distractor jitter", -0.04, 0.04, count, 3), 0.0, 1.0),
    }


def _draw_tag(draw: Draw, labels: Integers, classes: int, correlation: float | None, tag: Tag | None) -> Integers:
    other = draw.integers("tag class", classes)
    if tag == "absent" or (tag is None and correlation is None):
        return np.full_like(labels, -1)
    if tag == "aligned":
        return labels
    if tag == "conflicting":
        return (labels + 1 + draw.integers("conflicting tag", classes - 1)) % classes
    return np.where(draw.uniform("tag chance", 0.0, 1.0) < np.float32(correlation), labels, other)


def drawn_again(scenes: Scenes, seed: int, stream: str) -> Draw:
    """Random numbers for scenes that are there, other ones for each seed and stream."""
    return Draw(_mixed(scenes.key ^ _keys(np.array([0]), seed, stream)))
