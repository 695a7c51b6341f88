"""How the parts of critters look: one function a variant, each in the axes of its slot, the critter looking right."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import signed_distance as sd
from .critter_scenes import brightness, colour_table
from .signed_distance import Box, Field, Pen

Integers: TypeAlias = NDArray[np.int64]

OUTLINE, THIN_OUTLINE = 0.075, 0.055  # units
GROUND = 1.17  # units below the middle of the body
WHITE, CREAM, DARK, PINK = colour_table("ffffff fff2d1 291c33 f77380")[0, :, None]


class Look(NamedTuple):
    """How m parts look beside their shape: colours `m 3`, texture of wings and number of feet (m,)."""

    fill: Field
    accent: Field
    texture: Integers
    gaps: Integers  # between feet, one less than there are


def _face(pen: Pen, look: Look) -> None:
    x, y = pen.x, pen.y
    pen.paint(sd.blend(sd.circle(x, y, 0.6), sd.circle(x - 0.46, y - 0.2, 0.27), 0.25), look.fill, OUTLINE)
    pen.detail(sd.ellipse(x + 0.16, y + 0.34, 0.26, 0.12), WHITE, 0.3, softness=0.12)
    pen.detail(sd.circle(x - 0.05, y - 0.27, 0.17), PINK, 0.5, softness=0.08)
    pen.detail(sd.ellipse(x - 0.7, y - 0.06, 0.1, 0.085), DARK)
    pen.detail(np.maximum(sd.ring(x - 0.5, y - 0.19, 0.14, 0.025), 0.23 - y), DARK, 0.8)
    pen.detail(sd.circle(x - 0.22, y + 0.1, 0.2), WHITE)
    pen.detail(sd.circle(x - 0.26, y + 0.09, 0.145), DARK)
    pen.detail(sd.circle(x - 0.31, y + 0.15, 0.055), WHITE)


def _horned(pen: Pen, look: Look) -> None:
    cream = np.broadcast_to(CREAM, look.fill.shape)
    for away in (pen.x, -0.04 - pen.x):
        horn = sd.minus(sd.circle(away, pen.y + 0.64, 0.58), sd.circle(away - 0.22, pen.y + 0.82, 0.52))
        pen.paint(horn, cream, OUTLINE)
    _face(pen, look)


def _eared(pen: Pen, look: Look) -> None:
    for start, end in (((-0.28, -0.4), (-0.5, -1.12)), ((0.1, -0.45), (0.14, -1.2))):
        pen.paint(sd.capsule(pen.x, pen.y, start, end, 0.17, 0.24), look.fill, OUTLINE)
        pen.detail(sd.capsule(pen.x, pen.y, start, end, 0.06, 0.1), PINK, 0.7)
    _face(pen, look)


def _crested(pen: Pen, look: Look) -> None:
    lobes = ((-0.5, -0.42, 0.22), (-0.2, -0.7, 0.26), (0.2, -0.66, 0.22))
    pen.paint(sd.union(*(sd.circle(pen.x - x, pen.y - y, radius) for x, y, radius in lobes)), look.accent, OUTLINE)
    _face(pen, look)


def _knobbed(pen: Pen, look: Look) -> None:
    for start, end in (((-0.15, -0.4), (-0.42, -1.0)), ((0.15, -0.4), (0.4, -1.04))):
        pen.paint(sd.capsule(pen.x, pen.y, start, end, 0.1), look.fill, OUTLINE)
        pen.paint(sd.circle(pen.x - end[0], pen.y - end[1], 0.21), look.accent, OUTLINE)
    _face(pen, look)


def _fan(pen: Pen, look: Look) -> None:
    for tip in ((-0.35, -0.88), (-0.45, 0.35), (-0.72, -0.55), (-0.8, -0.08)):
        pen.paint(sd.capsule(pen.x, pen.y, (0.0, 0.0), tip, 0.1, 0.25), look.fill, OUTLINE)
        pen.detail(sd.circle(pen.x - tip[0], pen.y - tip[1], 0.13), look.accent)


def _curl(pen: Pen, look: Look) -> None:
    x, y = pen.x, pen.y + 0.15
    # Half circles of falling radius about two centres, each beginning where the last one ends.
    below = sd.union(np.abs(sd.circle(x + 0.45, y, 0.47)), np.abs(sd.circle(x + 0.42, y, 0.18)))
    spiral = np.where(y > 0, below, np.abs(sd.circle(x + 0.58, y, 0.34)))
    pen.paint(sd.union(spiral - 0.15, sd.circle(x + 0.6, y, 0.15)), look.fill, OUTLINE)


def _bolt(pen: Pen, look: Look) -> None:
    x, y = sd.turned(pen.x, pen.y, -0.6)
    corners = ((0.05, 0.2), (0.42, -0.54), (0.12, -0.52), (0.46, -1.28), (-0.16, -1.22), (-0.42, -0.3), (-0.1, -0.34))
    pen.paint(sd.polygon(x, y, corners) - 0.04, look.fill, OUTLINE)


def _puff(pen: Pen, look: Look) -> None:
    x, y = pen.x + 0.5, pen.y + 0.15
    bumps = ((0.0, -0.4), (0.35, -0.2), (0.35, 0.2), (0.0, 0.4), (-0.35, 0.2), (-0.35, -0.2))
    edge = (sd.circle(x - bump_x, y - bump_y, 0.22) for bump_x, bump_y in bumps)
    pen.paint(sd.union(sd.circle(x, y, 0.42), *edge), look.fill, OUTLINE)
    pen.detail(sd.circle(x + 0.05, y + 0.1, 0.3), look.fill + (1.0 - look.fill) * 0.5, 0.8, softness=0.2)


def _wing(pen: Pen, look: Look, shape: Callable[[Field, Field], tuple[Field, ...]]) -> None:
    """The lobes that `shape` gives in the axes of a wing that leans back, all with the same texture."""
    x, y = sd.turned(pen.x, pen.y, _LEAN)
    kind = look.texture[:, None, None]
    texture = np.where(kind == 1, _striped(y), np.where(kind == 2, _dotted(x, y), _chequered(x, y)))
    texture = np.where(kind == 0, np.float32(1), texture)
    bright = brightness(look.fill)[:, None] > 0.6
    colour = np.where(bright, look.fill * _WARM_SHADE, look.fill + (CREAM - look.fill) * 0.8)
    for lobe in shape(x, y):
        pen.paint(lobe, look.fill, OUTLINE)
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


def _leaf(pen: Pen, look: Look) -> None:
    _wing(pen, look, lambda x, y: (sd.lens(x, y + 0.7, 0.85, 0.46),))


def _bat(pen: Pen, look: Look) -> None:
    upper, lower = (-0.6, -1.32), (-1.15, -0.7)
    bites = ((-0.15, -1.65, 0.56), (-1.12, -1.2, 0.53), (-1.3, -0.25, 0.46), (-0.5, 0.4, 0.55))

    def shape(x: Field, y: Field) -> tuple[Field]:
        wing = sd.polygon(x, y, ((0.1, 0.1), (0.3, -1.3), upper, lower, (-0.95, 0.05)))
        return (sd.minus(wing, sd.union(*(sd.circle(x - a, y - b, radius) for a, b, radius in bites))),)

    _wing(pen, look, shape)
    for tip in (upper, lower):
        pen.detail(sd.capsule(*sd.turned(pen.x, pen.y, _LEAN), (0.1, 0.0), tip, 0.03), sd.ink(look.fill))


def _petal(pen: Pen, look: Look) -> None:
    lobes = (((-0.66, -0.28), 0.37), ((-0.02, -0.9), 0.5))
    _wing(pen, look, lambda x, y: tuple(sd.capsule(x, y, (0.0, 0.0), tip, 0.08, end) for tip, end in lobes))


def _feather(pen: Pen, look: Look) -> None:
    tips = ((-0.9, -0.35), (-0.62, -0.9), (0.0, -1.2))
    _wing(pen, look, lambda x, y: tuple(sd.capsule(x, y, (0.0, 0.0), tip, 0.16, 0.26) for tip in tips))


def _from_foot(pen: Pen, look: Look) -> Field:
    """How far each point lies ahead of the nearest foot, so that one figure draws them all."""
    step, gaps = 0.52, look.gaps[:, None, None].astype(np.float32)
    nearest = np.clip(np.floor(pen.x / step + gaps * 0.5 + 0.5), 0.0, gaps)
    return pen.x - (nearest - gaps * 0.5) * step


def _boot(pen: Pen, look: Look) -> None:
    x, y = _from_foot(pen, look), pen.y
    leg = sd.capsule(x, y, (-0.07, -0.7), (-0.07, -0.15), 0.14)
    pen.paint(sd.union(leg, sd.capsule(x, y, (-0.07, -0.15), (0.1, -0.15), 0.15)), look.fill, OUTLINE)


def _hoof(pen: Pen, look: Look) -> None:
    leg = sd.polygon(_from_foot(pen, look), pen.y, ((-0.11, -0.75), (0.11, -0.75), (0.23, 0.0), (-0.23, 0.0)))
    pen.paint(leg, look.fill, OUTLINE)
    pen.detail(-0.22 - pen.y, look.accent)


def _web(pen: Pen, look: Look) -> None:
    x, y = _from_foot(pen, look), pen.y
    web = sd.polygon(x, y, ((0.0, -0.4), (0.21, -0.04), (-0.21, -0.04))) - 0.04
    pen.paint(sd.union(sd.capsule(x, y, (0.0, -0.7), (0.0, -0.2), 0.1), web), look.fill, OUTLINE)


def _ball(pen: Pen, look: Look) -> None:
    x, y = _from_foot(pen, look), pen.y
    pen.paint(sd.capsule(x, y, (0.0, -0.7), (0.0, -0.2), 0.07), sd.ink(look.fill))
    pen.paint(sd.circle(x, y + 0.22, 0.22), look.fill, OUTLINE)


def _star(pen: Pen, look: Look) -> None:
    pen.paint(sd.star(pen.x, pen.y, 0.42, 0.5) - 0.02, look.fill, THIN_OUTLINE)


def _moon(pen: Pen, look: Look) -> None:
    pen.paint(sd.crescent(pen.x, pen.y, 0.42, 0.3, 0.33), look.fill, THIN_OUTLINE)


def _heart(pen: Pen, look: Look) -> None:
    pen.paint(sd.heart(pen.x, pen.y, 0.4), look.fill, THIN_OUTLINE)


def _ring(pen: Pen, look: Look) -> None:
    pen.paint(sd.ring(pen.x, pen.y, 0.27, 0.13), look.fill, THIN_OUTLINE)


_LEAN = -0.14  # tan(angle / 2) of a wing against the upright
_WARM_SHADE = np.array([0.75, 0.48, 0.55], dtype=np.float32)

FIGURES: dict[str, Callable[[Pen, Look], None]] = (
    {"horned": _horned, "eared": _eared, "crested": _crested, "knobbed": _knobbed}
    | {"leaf": _leaf, "bat": _bat, "petal": _petal, "feather": _feather}
    | {"fan": _fan, "curl": _curl, "bolt": _bolt, "puff": _puff}
    | {"boot": _boot, "hoof": _hoof, "web": _web, "ball": _ball}
    | {"star": _star, "moon": _moon, "heart": _heart, "ring": _ring}
)

# Of each slot: where its axes lie in the body's (x of wing and mark is the scene's), their unit, the figures' box.
PLACES: dict[str, tuple[float, float, float, Box]] = {
    "head": (0.98, -0.55, 1.12, (-0.8, -1.5, 0.9, 0.7)),
    "wing": (0.0, -0.32, 1.0, (-1.5, -1.6, 0.8, 0.4)),
    "tail": (-0.85, 0.15, 1.0, (-1.3, -1.25, 0.3, 0.75)),
    "foot": (0.0, GROUND, 1.0, (-1.1, -0.9, 1.1, 0.15)),
    "mark": (0.0, 0.32, 1.0, (-0.5, -0.5, 0.5, 0.5)),
}
