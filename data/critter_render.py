"""Scenes with critters as pictures, with the exact masks of every part.

Everything is drawn from signed distances, back to front, each thing only in a window about it and together in all
pictures that show the same variant. A window's size follows from the picture's size alone and no operation mixes
pictures, so that a picture does not depend on its batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import signed_distance as sd
from .critter_rules import FACTORS, SLOTS
from .critter_scenes import (
    BACKGROUNDS,
    DISTRACTORS,
    LARGEST_DISTRACTOR,
    LARGEST_TURN,
    LARGEST_UNIT,
    Scenes,
    brightness,
    colour_table,
)
from .signed_distance import Box, Field, Frame, Pen

Mask: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]

_OUTLINE, _THIN_OUTLINE = 0.075, 0.055  # units
GROUND = 1.17  # units below the middle of the body
TAG_RADIUS = 0.085  # of the picture's side
_PIXELS_AT_ONCE = 2**19  # of one plane of all pictures: larger batches fall out of the processor's cache

_WHITE, _CREAM, _DARK, _PINK = colour_table("ffffff fff2d1 291c33 f77380")[0, :, None]
_TAG_COLOURS = colour_table("e53935 1e88e5 43a047 8e24aa fb8c00 00acc1 6d4c41 3949ab")[0]


@dataclass(frozen=True)
class Rendering:
    """Pictures of n scenes with their truth; h = w = size, positions in pixels from the upper left corner."""

    images: NDArray[np.uint8]  # n h w 3
    regions: NDArray[np.uint8]  # n h w: 0 where the background is seen, 1 the body, 2 + s the part in slot s
    amodal_parts: Mask  # n slot h w, each part with what is hidden of it
    tag: Mask  # n h w, what is seen of the tag
    keypoints: Field  # n slot 2, x and y of the middle of each part, NaN where it is removed

    @cached_property
    def parts(self) -> Mask:
        """What is seen of each part `n slot h w`; no pixel belongs to two."""
        return self.regions[:, None] == np.arange(2, 2 + len(SLOTS), dtype=np.uint8)[:, None, None]

    @cached_property
    def creature(self) -> Mask:
        """Body and parts `n h w`."""
        return self.regions > 0

    @cached_property
    def boxes(self) -> Integers:
        """Tight box of the creature `n 4`, XYXY, x2 and y2 exclusive."""
        size = self.regions.shape[1]
        columns, rows = (np.asarray(self.creature.any(axis=axis)) for axis in (1, 2))
        starts = [columns.argmax(axis=1), rows.argmax(axis=1)]
        ends = [size - columns[:, ::-1].argmax(axis=1), size - rows[:, ::-1].argmax(axis=1)]
        return np.stack(starts + ends, axis=1)


def render(scenes: Scenes, size: int) -> Rendering:
    """Draw the scenes as pictures of `size` x `size` pixels."""
    step = max(1, _PIXELS_AT_ONCE // size**2)
    done = [_render(scenes.take(slice(start, start + step)), size) for start in range(0, max(len(scenes), 1), step)]
    if len(done) == 1:
        return done[0]
    names = ("images", "regions", "amodal_parts", "tag", "keypoints")
    return Rendering(**{name: np.concatenate([getattr(part, name) for part in done]) for name in names})


class _Canvas(NamedTuple):
    """What a rendering is drawn into."""

    colours: Field  # n 3 h w, 0 to 1
    regions: NDArray[np.uint8]
    amodal: Mask
    tag: Mask
    keypoints: Field

    @property
    def size(self) -> int:
        return self.colours.shape[-1]


def _render(scenes: Scenes, size: int) -> Rendering:
    n, slots = len(scenes), len(SLOTS)
    canvas = _Canvas(
        colours=np.zeros((n, 3, size, size), dtype=np.float32),
        regions=np.zeros((n, size, size), dtype=np.uint8),
        amodal=np.zeros((n, slots, size, size), dtype=bool),
        tag=np.zeros((n, size, size), dtype=bool),
        keypoints=np.full((n, slots, 2), np.nan, dtype=np.float32),
    )
    x, y = (scenes.position * np.float32(size)).T
    facing = np.where(scenes.mirrored, np.float32(-1), np.float32(1))
    frame = Frame(x, y, scenes.unit * np.float32(size), *sd.rotation(scenes.turn), facing)
    _draw_background(canvas, scenes)
    for place in range(scenes.distractors.shape[1]):
        _draw_distractor(canvas, scenes, place)
    _draw_tag(canvas, scenes)
    _draw_shadow(canvas, frame)
    for slot in ("tail", "foot"):
        _draw_part(canvas, scenes, frame, slot)
    _draw_body(canvas, scenes, frame)
    for slot in ("mark", "wing", "head"):
        _draw_part(canvas, scenes, frame, slot)
    pixels = (sd.clamped(canvas.colours) * 255.0 + 0.5).astype(np.uint8)
    tag = canvas.tag & (canvas.regions == 0)
    return Rendering(pixels.transpose(0, 2, 3, 1), canvas.regions, canvas.amodal, tag, canvas.keypoints)


# Background: how much of the second and then of the third backdrop colour lies at each point (x, y: 0 to 1).


def _draw_background(canvas: _Canvas, scenes: Scenes) -> None:
    centres = (np.arange(canvas.size, dtype=np.float32) + 0.5) / np.float32(canvas.size)
    for kind, name in enumerate(BACKGROUNDS):
        rows = np.flatnonzero(scenes.background == kind)
        if rows.size:
            first, second, third = np.moveaxis(scenes.backdrop[rows, :, :, None, None], 1, 0)
            pattern = scenes.pattern[rows].T[:, :, None, None]
            middle, far = _PATTERNS[name](centres, centres[:, None], pattern, scenes.lattice[rows])
            colours = first + (second - first) * middle[:, None]
            canvas.colours[rows] = colours + (third - colours) * far[:, None]


def _noise(x: Field, y: Field, pattern: Field, lattice: Field) -> tuple[Field, Field]:
    """Soft clouds: two octaves of value noise."""
    coarse = _filled(_filled(lattice[:, ::4, ::4], y[:, 0], 1), x, 2)
    fine = _filled(_filled(lattice, y[:, 0], 1), x, 2)
    cloud = coarse * 0.7 + fine * 0.3
    return sd.clamped(cloud * 1.6 - 0.3), sd.clamped(cloud * 2.0 - 1.3) * 0.5


def _gradient(x: Field, y: Field, pattern: Field, lattice: Field) -> tuple[Field, Field]:
    """From colour to colour in any direction."""
    across, down = sd.rotation(pattern[0] * 2.0 - 1.0)
    depth = (x - 0.5) * down + (y - 0.5) * across + 0.5
    return sd.clamped(depth), sd.clamped(depth - 0.6) * 0.6


def _stripes(x: Field, y: Field, pattern: Field, lattice: Field) -> tuple[Field, Field]:
    """Broad pale stripes in any direction."""
    across, down = sd.rotation(pattern[0] * 2.0 - 1.0)
    phase = (x * across + y * down) * (pattern[1] * 2.5 + 2.5) + pattern[2]
    wave = np.abs(phase - np.floor(phase) - 0.5) * 2.0
    return sd.clamped((wave - 0.5) * 6.0 + 0.5) * 0.75, np.zeros_like(wave)


def _hills(x: Field, y: Field, pattern: Field, lattice: Field) -> tuple[Field, Field]:
    """A sky, paler towards rolling ground."""
    skyline = _filled(lattice[:, :1, ::2], x, 2) * 0.16 + (pattern[3] * 0.2 + 0.47)
    ground = sd.coverage(skyline - y, float(len(x)))
    return np.broadcast_to(sd.clamped(y * 1.4), ground.shape), ground


def _filled(values: Field, at: Field, axis: int) -> Field:
    """Values given at equal steps from 0 to 1 along `axis`, smoothly filled in at the positions `at` (below 1)."""
    place = at * np.float32(values.shape[axis] - 1)
    left = place.astype(np.int64)
    share = place - left.astype(np.float32)
    share = np.expand_dims(share * share * (3.0 - 2.0 * share), tuple(range(1, values.ndim - axis)))
    before, after = values.take(left, axis), values.take(left + 1, axis)
    return before + (after - before) * share


_PATTERNS = {"noise": _noise, "gradient": _gradient, "stripes": _stripes, "hills": _hills}


def _draw_distractor(canvas: _Canvas, scenes: Scenes, place: int) -> None:
    for kind, name in enumerate(DISTRACTORS):
        rows = np.flatnonzero(scenes.distractors[:, place] == kind)
        if not rows.size:
            continue
        x, y, radius = (scenes.distractor_shapes[rows, place, :3] * np.float32(canvas.size)).T
        frame = Frame(x, y, radius, *sd.rotation(scenes.distractor_shapes[rows, place, 3]), np.ones_like(x))
        pen = Pen(canvas.colours, rows, frame, (-1.0, -1.0, 1.0, 1.0), LARGEST_DISTRACTOR * canvas.size)
        fill = scenes.distractor_fills[rows, place]
        x, y = pen.x, pen.y
        if name == "bubble":
            pen.paint(sd.ring(x, y, 0.85, 0.1), fill)
            pen.tint(sd.circle(x, y, 0.85), fill, 0.3)
            pen.tint(sd.circle(x - 0.35, y + 0.35, 0.16), _WHITE, 0.9)
        elif name == "stone":
            pen.paint(sd.blend(sd.ellipse(x, y - 0.15, 0.95, 0.6), sd.circle(x - 0.2, y + 0.15, 0.55), 0.3), fill)
            pen.detail(sd.ellipse(x - 0.25, y + 0.25, 0.3, 0.15), _WHITE, 0.25)
        else:
            pen.paint(sd.lens(x, y, 1.0, 0.42), fill)
            pen.detail(sd.box(x, y - 0.2, 0.05, 0.9), sd.ink(fill), 0.5)
        pen.lift()


def _draw_tag(canvas: _Canvas, scenes: Scenes) -> None:
    """A sticker with a white rim; colour and pattern tell the class."""
    for kind in range(4):
        rows = np.flatnonzero((scenes.tag >= 0) & (scenes.tag % 4 == kind))
        if not rows.size:
            continue
        x, y = (scenes.tag_position[rows] * np.float32(canvas.size)).T
        one, unit = np.ones_like(x), TAG_RADIUS * canvas.size
        pen = Pen(canvas.colours, rows, Frame(x, y, one * unit, one, one * 0.0, one), (-1.0, -1.0, 1.0, 1.0), unit)
        x, y = pen.x, pen.y
        pen.paint(sd.box(x, y, 1.0, 1.0, 0.3), one[:, None] * _WHITE)
        field = sd.box(x, y, 0.78, 0.78, 0.15)
        pen.detail(field, _TAG_COLOURS[scenes.tag[rows]])
        pattern = (np.abs(x) - 0.22, sd.circle(x, y, 0.4), np.abs(y) - 0.22, sd.ring(x, y, 0.45, 0.16))[kind]
        pen.detail(np.maximum(pattern, field), _WHITE)
        pen.lift()
        pen.stamp(canvas.tag, True)


def _draw_shadow(canvas: _Canvas, frame: Frame) -> None:
    ground = frame.at(0.0, GROUND).upright()
    pen = Pen(canvas.colours, np.arange(len(frame.x)), ground, (-1.2, -0.25, 1.2, 0.25), LARGEST_UNIT * canvas.size)
    pen.tint(sd.ellipse(pen.x, pen.y, 1.0, 0.12), _DARK, 0.2, softness=0.2)
    pen.lift()


def _draw_body(canvas: _Canvas, scenes: Scenes, frame: Frame) -> None:
    box = (-1.25, -1.05, 1.25, 1.05)
    pen = Pen(canvas.colours, np.arange(len(scenes)), frame, box, LARGEST_UNIT * canvas.size, 2 * LARGEST_TURN)
    half_length, half_height, taper = scenes.body.T[:, :, None, None]
    fill = scenes.fills[:, 0]
    pen.paint(sd.ellipse(pen.x, pen.y / (1.0 - taper * pen.x), half_length, half_height), fill, _OUTLINE)
    pen.detail(sd.ellipse(pen.x - 0.12, pen.y - 0.5, 0.72, 0.45), fill + (1.0 - fill) * 0.5, 0.6, softness=0.25)
    pen.lift()
    pen.stamp(canvas.regions, 1)


class _Look(NamedTuple):
    """How m parts look beside their shape: colours `m 3`, texture of wings and number of feet (m,)."""

    fill: Field
    accent: Field
    texture: Integers
    gaps: Integers  # between feet, one less than there are


def _draw_part(canvas: _Canvas, scenes: Scenes, frame: Frame, slot: str) -> None:
    index = SLOTS.index(slot)
    x, y, scale, box = _PLACES[slot]
    rear, front = scenes.stations.T
    at_front = (scenes.side == 0) == (slot == "mark")
    frame = frame.at(np.where(at_front, front, rear) if slot in ("wing", "mark") else x, y, scale)
    for value, variant in enumerate(FACTORS[slot].variants):
        rows = np.flatnonzero(scenes.variants[:, index] == value)
        if not rows.size:
            continue
        own = frame.take(rows)
        pen = Pen(canvas.colours, rows, own, box, LARGEST_UNIT * scale * canvas.size, 2 * LARGEST_TURN)
        look = _Look(scenes.fills[rows, 1 + index], scenes.accent[rows], scenes.texture[rows], scenes.count[rows])
        _FIGURES[variant](pen, look)
        pen.lift()
        pen.stamp(canvas.regions, 2 + index)
        pen.stamp(canvas.amodal[:, index], True)
        middle = own.at((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        canvas.keypoints[rows, index] = np.stack([middle.x, middle.y], axis=1)


# Figures: one function a variant, each in the axes of its slot, the critter looking to the right.


def _face(pen: Pen, look: _Look) -> None:
    x, y = pen.x, pen.y
    pen.paint(sd.blend(sd.circle(x, y, 0.6), sd.circle(x - 0.46, y - 0.2, 0.27), 0.25), look.fill, _OUTLINE)
    pen.detail(sd.ellipse(x + 0.16, y + 0.34, 0.26, 0.12), _WHITE, 0.3, softness=0.12)
    pen.detail(sd.circle(x - 0.05, y - 0.27, 0.17), _PINK, 0.5, softness=0.08)
    pen.detail(sd.ellipse(x - 0.7, y - 0.06, 0.1, 0.085), _DARK)
    pen.detail(np.maximum(sd.ring(x - 0.5, y - 0.19, 0.14, 0.025), 0.23 - y), _DARK, 0.8)
    pen.detail(sd.circle(x - 0.22, y + 0.1, 0.2), _WHITE)
    pen.detail(sd.circle(x - 0.26, y + 0.09, 0.145), _DARK)
    pen.detail(sd.circle(x - 0.31, y + 0.15, 0.055), _WHITE)


def _horned(pen: Pen, look: _Look) -> None:
    cream = np.broadcast_to(_CREAM, look.fill.shape)
    for away in (pen.x, -0.04 - pen.x):
        horn = sd.minus(sd.circle(away, pen.y + 0.64, 0.58), sd.circle(away - 0.22, pen.y + 0.82, 0.52))
        pen.paint(horn, cream, _OUTLINE)
    _face(pen, look)


def _eared(pen: Pen, look: _Look) -> None:
    for start, end in (((-0.28, -0.4), (-0.5, -1.12)), ((0.1, -0.45), (0.14, -1.2))):
        pen.paint(sd.capsule(pen.x, pen.y, start, end, 0.17, 0.24), look.fill, _OUTLINE)
        pen.detail(sd.capsule(pen.x, pen.y, start, end, 0.06, 0.1), _PINK, 0.7)
    _face(pen, look)


def _crested(pen: Pen, look: _Look) -> None:
    lobes = ((-0.5, -0.42, 0.22), (-0.2, -0.7, 0.26), (0.2, -0.66, 0.22))
    pen.paint(sd.union(*(sd.circle(pen.x - x, pen.y - y, radius) for x, y, radius in lobes)), look.accent, _OUTLINE)
    _face(pen, look)


def _knobbed(pen: Pen, look: _Look) -> None:
    for start, end in (((-0.15, -0.4), (-0.42, -1.0)), ((0.15, -0.4), (0.4, -1.04))):
        pen.paint(sd.capsule(pen.x, pen.y, start, end, 0.1), look.fill, _OUTLINE)
        pen.paint(sd.circle(pen.x - end[0], pen.y - end[1], 0.21), look.accent, _OUTLINE)
    _face(pen, look)


def _fan(pen: Pen, look: _Look) -> None:
    for tip in ((-0.35, -0.88), (-0.45, 0.35), (-0.72, -0.55), (-0.8, -0.08)):
        pen.paint(sd.capsule(pen.x, pen.y, (0.0, 0.0), tip, 0.1, 0.25), look.fill, _OUTLINE)
        pen.detail(sd.circle(pen.x - tip[0], pen.y - tip[1], 0.13), look.accent)


def _curl(pen: Pen, look: _Look) -> None:
    x, y = pen.x, pen.y + 0.15
    # Half circles of falling radius about two centres, each beginning where the last one ends.
    below = sd.union(np.abs(sd.circle(x + 0.45, y, 0.47)), np.abs(sd.circle(x + 0.42, y, 0.18)))
    spiral = np.where(y > 0, below, np.abs(sd.circle(x + 0.58, y, 0.34)))
    pen.paint(sd.union(spiral - 0.15, sd.circle(x + 0.6, y, 0.15)), look.fill, _OUTLINE)


def _bolt(pen: Pen, look: _Look) -> None:
    x, y = sd.turned(pen.x, pen.y, -0.6)
    corners = ((0.05, 0.2), (0.42, -0.54), (0.12, -0.52), (0.46, -1.28), (-0.16, -1.22), (-0.42, -0.3), (-0.1, -0.34))
    pen.paint(sd.polygon(x, y, corners) - 0.04, look.fill, _OUTLINE)


def _puff(pen: Pen, look: _Look) -> None:
    x, y = pen.x + 0.5, pen.y + 0.15
    bumps = ((0.0, -0.4), (0.35, -0.2), (0.35, 0.2), (0.0, 0.4), (-0.35, 0.2), (-0.35, -0.2))
    edge = (sd.circle(x - bump_x, y - bump_y, 0.22) for bump_x, bump_y in bumps)
    pen.paint(sd.union(sd.circle(x, y, 0.42), *edge), look.fill, _OUTLINE)
    pen.detail(sd.circle(x + 0.05, y + 0.1, 0.3), look.fill + (1.0 - look.fill) * 0.5, 0.8, softness=0.2)


def _wing(pen: Pen, look: _Look, shape: Callable[[Field, Field], tuple[Field, ...]]) -> None:
    """The lobes that `shape` gives in the axes of a wing that leans back, all with the same texture."""
    x, y = sd.turned(pen.x, pen.y, _LEAN)
    kind = look.texture[:, None, None]
    texture = np.where(kind == 1, _striped(y), np.where(kind == 2, _dotted(x, y), _chequered(x, y)))
    texture = np.where(kind == 0, np.float32(1), texture)
    bright = brightness(look.fill)[:, None] > 0.6
    colour = np.where(bright, look.fill * _WARM_SHADE, look.fill + (_CREAM - look.fill) * 0.8)
    for lobe in shape(x, y):
        pen.paint(lobe, look.fill, _OUTLINE)
        pen.detail(texture, colour)


def _striped(y: Field) -> Field:
    return (np.abs(_in_cell(y, 0.4)) - 0.25) * 0.4


def _dotted(x: Field, y: Field) -> Field:
    return sd.circle(_in_cell(x, 0.4), _in_cell(y, 0.4), 0.32) * 0.4


def _chequered(x: Field, y: Field) -> Field:
    to_side = 0.15 - 0.3 * np.maximum(np.abs(_in_cell(x, 0.3)), np.abs(_in_cell(y, 0.3)))
    odd = (np.floor(x / 0.3) + np.floor(y / 0.3)) % 2.0 == 1.0
    return np.where(odd, -to_side, to_side)


def _in_cell(x: Field, step: float) -> Field:
    """Where each point lies in its cell of `step`: -0.5 to 0.5."""
    share = x / step
    return share - np.floor(share) - 0.5


def _leaf(pen: Pen, look: _Look) -> None:
    _wing(pen, look, lambda x, y: (sd.lens(x, y + 0.7, 0.85, 0.46),))


def _bat(pen: Pen, look: _Look) -> None:
    upper, lower = (-0.6, -1.32), (-1.15, -0.7)
    bites = ((-0.15, -1.65, 0.56), (-1.12, -1.2, 0.53), (-1.3, -0.25, 0.46), (-0.5, 0.4, 0.55))

    def shape(x: Field, y: Field) -> tuple[Field]:
        wing = sd.polygon(x, y, ((0.1, 0.1), (0.3, -1.3), upper, lower, (-0.95, 0.05)))
        return (sd.minus(wing, sd.union(*(sd.circle(x - a, y - b, radius) for a, b, radius in bites))),)

    _wing(pen, look, shape)
    for tip in (upper, lower):
        pen.detail(sd.capsule(*sd.turned(pen.x, pen.y, _LEAN), (0.1, 0.0), tip, 0.03), sd.ink(look.fill))


def _petal(pen: Pen, look: _Look) -> None:
    lobes = (((-0.66, -0.28), 0.37), ((-0.02, -0.9), 0.5))
    _wing(pen, look, lambda x, y: tuple(sd.capsule(x, y, (0.0, 0.0), tip, 0.08, end) for tip, end in lobes))


def _feather(pen: Pen, look: _Look) -> None:
    tips = ((-0.9, -0.35), (-0.62, -0.9), (0.0, -1.2))
    _wing(pen, look, lambda x, y: tuple(sd.capsule(x, y, (0.0, 0.0), tip, 0.16, 0.26) for tip in tips))


def _from_foot(pen: Pen, look: _Look) -> Field:
    """How far each point lies ahead of the nearest foot, so that one figure draws them all."""
    step, gaps = 0.52, look.gaps[:, None, None].astype(np.float32)
    nearest = np.clip(np.floor(pen.x / step + gaps * 0.5 + 0.5), 0.0, gaps)
    return pen.x - (nearest - gaps * 0.5) * step


def _boot(pen: Pen, look: _Look) -> None:
    x, y = _from_foot(pen, look), pen.y
    leg = sd.capsule(x, y, (-0.07, -0.7), (-0.07, -0.15), 0.14)
    pen.paint(sd.union(leg, sd.capsule(x, y, (-0.07, -0.15), (0.1, -0.15), 0.15)), look.fill, _OUTLINE)


def _hoof(pen: Pen, look: _Look) -> None:
    leg = sd.polygon(_from_foot(pen, look), pen.y, ((-0.11, -0.75), (0.11, -0.75), (0.23, 0.0), (-0.23, 0.0)))
    pen.paint(leg, look.fill, _OUTLINE)
    pen.detail(-0.22 - pen.y, look.accent)


def _web(pen: Pen, look: _Look) -> None:
    x, y = _from_foot(pen, look), pen.y
    web = sd.polygon(x, y, ((0.0, -0.4), (0.21, -0.04), (-0.21, -0.04))) - 0.04
    pen.paint(sd.union(sd.capsule(x, y, (0.0, -0.7), (0.0, -0.2), 0.1), web), look.fill, _OUTLINE)


def _ball(pen: Pen, look: _Look) -> None:
    x, y = _from_foot(pen, look), pen.y
    pen.paint(sd.capsule(x, y, (0.0, -0.7), (0.0, -0.2), 0.07), sd.ink(look.fill))
    pen.paint(sd.circle(x, y + 0.22, 0.22), look.fill, _OUTLINE)


def _star(pen: Pen, look: _Look) -> None:
    pen.paint(sd.star(pen.x, pen.y, 0.42, 0.5) - 0.02, look.fill, _THIN_OUTLINE)


def _moon(pen: Pen, look: _Look) -> None:
    pen.paint(sd.crescent(pen.x, pen.y, 0.42, 0.3, 0.33), look.fill, _THIN_OUTLINE)


def _heart(pen: Pen, look: _Look) -> None:
    pen.paint(sd.heart(pen.x, pen.y, 0.4), look.fill, _THIN_OUTLINE)


def _ring(pen: Pen, look: _Look) -> None:
    pen.paint(sd.ring(pen.x, pen.y, 0.27, 0.13), look.fill, _THIN_OUTLINE)


_LEAN = -0.14  # tan(angle / 2) of a wing against the upright
_WARM_SHADE = np.array([0.75, 0.48, 0.55], dtype=np.float32)

_FIGURES: dict[str, Callable[[Pen, _Look], None]] = (
    {"horned": _horned, "eared": _eared, "crested": _crested, "knobbed": _knobbed}
    | {"leaf": _leaf, "bat": _bat, "petal": _petal, "feather": _feather}
    | {"fan": _fan, "curl": _curl, "bolt": _bolt, "puff": _puff}
    | {"boot": _boot, "hoof": _hoof, "web": _web, "ball": _ball}
    | {"star": _star, "moon": _moon, "heart": _heart, "ring": _ring}
)

# Of each slot: where its axes lie in the body's (x of wing and mark is the scene's), their unit, the figures' box.
_PLACES: dict[str, tuple[float, float, float, Box]] = {
    "head": (0.98, -0.55, 1.12, (-0.8, -1.5, 0.9, 0.7)),
    "wing": (0.0, -0.32, 1.0, (-1.5, -1.6, 0.8, 0.4)),
    "tail": (-0.85, 0.15, 1.0, (-1.3, -1.25, 0.3, 0.75)),
    "foot": (0.0, GROUND, 1.0, (-1.1, -0.9, 1.1, 0.15)),
    "mark": (0.0, 0.32, 1.0, (-0.5, -0.5, 0.5, 0.5)),
}
