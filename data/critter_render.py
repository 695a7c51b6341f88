"""Scenes with critters as pictures, with the exact masks of every part.

Everything is drawn from signed distances, back to front, each thing only in a window about it and together in all
pictures that show the same variant. A window's size follows from the picture's size alone and no operation mixes
pictures, so that a picture does not depend on its batch.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import signed_distance as sd
from .critter_figures import DARK, FIGURES, GROUND, OUTLINE, PLACES, WHITE, Look
from .critter_rules import FACTORS, SLOTS
from .critter_scenes import (
    BACKGROUNDS,
    DISTRACTORS,
    LARGEST_DISTRACTOR,
    LARGEST_TURN,
    LARGEST_UNIT,
    Scenes,
    colour_table,
)
from .signed_distance import Field, Frame, Pen

Mask: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]

TAG_RADIUS = 0.085  # of the picture's side
_PIXELS_AT_ONCE = 2**19  # of one plane of all pictures: larger batches fall out of the processor's cache

_TAG_COLOURS = colour_table("e53935 1e88e5 43a047 8e24aa fb8c00 00acc1 6d4c41 3949ab")[0]


@dataclass(frozen=True)
class Rendering:
    """Pictures of n scenes with their truth; h = w = size, positions in pixels from the upper left corner."""

    images: NDArray[np.uint8]  # n h w 3
    regions: NDArray[np.uint8]  # n h w: 0 where the background is seen, 1 the body, 2 + s the part in slot s
    amodal_parts: Mask  # n slot h w, each part with what is hidden of it
    tag: Mask  # n h w, what is seen of the tag
    keypoints: Field  # n slot 2, x and y of the middle of each part, NaN where it is removed
    distractors: Mask  # n h w, what is seen of all of them

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
    names = ("images", "regions", "amodal_parts", "tag", "keypoints", "distractors")
    return Rendering(**{name: np.concatenate([getattr(part, name) for part in done]) for name in names})


class _Canvas(NamedTuple):
    """What a rendering is drawn into."""

    colours: Field  # n 3 h w, 0 to 1
    regions: NDArray[np.uint8]
    amodal: Mask
    tag: Mask
    keypoints: Field
    distractors: Mask

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
        distractors=np.zeros((n, size, size), dtype=bool),
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
    distractors = canvas.distractors & ~canvas.tag & (canvas.regions == 0)
    return Rendering(pixels.transpose(0, 2, 3, 1), canvas.regions, canvas.amodal, tag, canvas.keypoints, distractors)


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
            pen.tint(sd.circle(x - 0.35, y + 0.35, 0.16), WHITE, 0.9)
        elif name == "stone":
            pen.paint(sd.blend(sd.ellipse(x, y - 0.15, 0.95, 0.6), sd.circle(x - 0.2, y + 0.15, 0.55), 0.3), fill)
            pen.detail(sd.ellipse(x - 0.25, y + 0.25, 0.3, 0.15), WHITE, 0.25)
        else:
            pen.paint(sd.lens(x, y, 1.0, 0.42), fill)
            pen.detail(sd.box(x, y - 0.2, 0.05, 0.9), sd.ink(fill), 0.5)
        pen.lift()
        pen.stamp(canvas.distractors, True)


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
        pen.paint(sd.box(x, y, 1.0, 1.0, 0.3), one[:, None] * WHITE)
        field = sd.box(x, y, 0.78, 0.78, 0.15)
        pen.detail(field, _TAG_COLOURS[scenes.tag[rows]])
        pattern = (np.abs(x) - 0.22, sd.circle(x, y, 0.4), np.abs(y) - 0.22, sd.ring(x, y, 0.45, 0.16))[kind]
        pen.detail(np.maximum(pattern, field), WHITE)
        pen.lift()
        pen.stamp(canvas.tag, True)


def _draw_shadow(canvas: _Canvas, frame: Frame) -> None:
    ground = frame.at(0.0, GROUND).upright()
    pen = Pen(canvas.colours, np.arange(len(frame.x)), ground, (-1.2, -0.25, 1.2, 0.25), LARGEST_UNIT * canvas.size)
    pen.tint(sd.ellipse(pen.x, pen.y, 1.0, 0.12), DARK, 0.2, softness=0.2)
    pen.lift()


def _draw_body(canvas: _Canvas, scenes: Scenes, frame: Frame) -> None:
    box = (-1.25, -1.05, 1.25, 1.05)
    pen = Pen(canvas.colours, np.arange(len(scenes)), frame, box, LARGEST_UNIT * canvas.size, 2 * LARGEST_TURN)
    half_length, half_height, taper = scenes.body.T[:, :, None, None]
    fill = scenes.fills[:, 0]
    pen.paint(sd.ellipse(pen.x, pen.y / (1.0 - taper * pen.x), half_length, half_height), fill, OUTLINE)
    pen.detail(sd.ellipse(pen.x - 0.12, pen.y - 0.5, 0.72, 0.45), fill + (1.0 - fill) * 0.5, 0.6, softness=0.25)
    pen.lift()
    pen.stamp(canvas.regions, 1)


def _draw_part(canvas: _Canvas, scenes: Scenes, frame: Frame, slot: str) -> None:
    index = SLOTS.index(slot)
    x, y, scale, box = PLACES[slot]
    rear, front = scenes.stations.T
    at_front = (scenes.side == 0) == (slot == "mark")
    frame = frame.at(np.where(at_front, front, rear) if slot in ("wing", "mark") else x, y, scale)
    for value, variant in enumerate(FACTORS[slot].variants):
        rows = np.flatnonzero(scenes.variants[:, index] == value)
        if not rows.size:
            continue
        own = frame.take(rows)
        pen = Pen(canvas.colours, rows, own, box, LARGEST_UNIT * scale * canvas.size, 2 * LARGEST_TURN)
        look = Look(scenes.fills[rows, 1 + index], scenes.accent[rows], scenes.texture[rows], scenes.count[rows])
        FIGURES[variant](pen, look)
        pen.lift()
        pen.stamp(canvas.regions, 2 + index)
        pen.stamp(canvas.amodal[:, index], True)
        middle = own.at((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        canvas.keypoints[rows, index] = np.stack([middle.x, middle.y], axis=1)
