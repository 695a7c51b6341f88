"""Signed distances from plain shapes, and the windows of many pictures that are painted from them.

`x` and `y` are float32 arrays of points, in any unit and of any shape (they broadcast); y points down. A distance is
negative inside. It is exact for most shapes; where it is not, it is right to first order at the outline, which is all
that anti-aliasing needs, and the docstring says so.

Only operations that IEEE 754 defines to the last bit are used (+ - * / sqrt, comparisons, min, max, floor), each on one
element at a time. No sine, power or sum over an axis: their last bits differ between processors and library versions,
and pictures drawn from them could not be compared by their hash.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.floating[Any]]  # float32; numpy's annotations widen it in products with a float
Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom
Number = TypeVar("Number", float, Field)

# A regular five-pointed star is symmetric in lines at 36 degrees: their cosine and sine.
_COSINE_36, _SINE_36 = 0.80901699, 0.58778525
_HALF_ROOT = 0.70710678


def length(x: Field, y: Field) -> Field:
    """Distance of each point from the origin."""
    square = x * x + y * y
    return np.sqrt(square, out=square)


def circle(x: Field, y: Field, radius: float | Field) -> Field:
    """Disc about the origin."""
    return length(x, y) - radius


def ring(x: Field, y: Field, radius: float, half_width: float) -> Field:
    """Band of width `2 half_width` about the circle of `radius`."""
    return np.abs(length(x, y) - radius) - half_width


def ellipse(x: Field, y: Field, half_width: float | Field, half_height: float | Field) -> Field:
    """Ellipse about the origin; right to first order at the outline."""
    across, down = x / half_width, y / half_height
    reach = length(across, down)
    slope = length(across / half_width, down / half_height)
    return reach * (reach - 1.0) / np.maximum(slope, 1e-6)


def box(x: Field, y: Field, half_width: float, half_height: float, corner: float = 0.0) -> Field:
    """Rectangle about the origin, its corners rounded with radius `corner`."""
    across = np.abs(x) - (half_width - corner)
    down = np.abs(y) - (half_height - corner)
    outside = length(np.maximum(across, 0.0), np.maximum(down, 0.0))
    return outside + np.minimum(np.maximum(across, down), 0.0) - corner


def capsule(x: Field, y: Field, start: Point, end: Point, radius: float, end_radius: float | None = None) -> Field:
    """All points within `radius` of the segment from `start` to `end`.

    With an `end_radius` the radius changes evenly along the segment; then right to first order for slim capsules.
    """
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    from_x, from_y = x - start[0], y - start[1]
    scale = 1.0 / (along_x * along_x + along_y * along_y)
    share = clamped(from_x * (along_x * scale) + from_y * (along_y * scale))
    distance = length(from_x - along_x * share, from_y - along_y * share)
    if end_radius is None:
        return distance - radius
    return distance - (radius + (end_radius - radius) * share)


def polygon(x: Field, y: Field, corners: Sequence[Point]) -> Field:
    """Any polygon without crossing sides, given by at least three corners in order."""
    nearest = np.full(np.broadcast(x, y).shape, np.inf, dtype=np.float32)
    inside = np.zeros(nearest.shape, dtype=bool)
    for (start_x, start_y), (end_x, end_y) in pairwise([*corners, corners[0]]):
        side_x, side_y = end_x - start_x, end_y - start_y
        from_x, from_y = x - start_x, y - start_y
        scale = 1.0 / (side_x * side_x + side_y * side_y)
        share = clamped(from_x * (side_x * scale) + from_y * (side_y * scale))
        away_x, away_y = from_x - side_x * share, from_y - side_y * share
        nearest = np.minimum(nearest, away_x * away_x + away_y * away_y)
        # A ray to the right crosses this side if the side spans the point's height and passes to its right.
        spans = (y >= start_y) != (y >= end_y)
        inside ^= spans & ((side_x * from_y > side_y * from_x) == (end_y > start_y))
    return np.where(inside, -np.sqrt(nearest), np.sqrt(nearest))


def star(x: Field, y: Field, radius: float, inner: float) -> Field:
    """Five-pointed star, one point up; `inner` (0 to 1) is the radius of its notches as a share of `radius`."""
    x, y = np.abs(x), -y
    for normal_x, normal_y in ((_COSINE_36, -_SINE_36), (-_COSINE_36, -_SINE_36)):
        beyond = 2.0 * np.maximum(normal_x * x + normal_y * y, 0.0)
        x, y = x - beyond * normal_x, y - beyond * normal_y
    x, y = np.abs(x), y - radius
    side_x, side_y = _SINE_36 * inner * radius, _COSINE_36 * inner * radius - radius
    share = clamped((x * side_x + y * side_y) / (side_x * side_x + side_y * side_y))
    distance = length(x - side_x * share, y - side_y * share)
    return np.where(y * side_x > x * side_y, distance, -distance)


def crescent(x: Field, y: Field, radius: float, shift: float, bite: float) -> Field:
    """Disc less a second disc of radius `bite`, which lies `shift` to the right; right at the outline."""
    return minus(circle(x, y, radius), circle(x - shift, y, bite))


def lens(x: Field, y: Field, half_length: float, half_width: float) -> Field:
    """What two equal discs have in common, its tips at (0, ± half_length); right at the outline."""
    shift = (half_length * half_length - half_width * half_width) / (2.0 * half_width)
    return circle(np.abs(x) + shift, y, shift + half_width)


def heart(x: Field, y: Field, radius: float) -> Field:
    """Heart with its tip down, within `radius` of the origin."""
    side, lift = 0.56 * radius, 0.14 * radius
    x, y = np.abs(x), y - lift
    square = box((x + y) * _HALF_ROOT, (x - y) * _HALF_ROOT, side, side)
    # The two upper sides of the square, which stands on a corner, carry a half-disc each.
    return union(square, circle(x - side * _HALF_ROOT, y + side * _HALF_ROOT, side))


def union(first: Field, *others: Field) -> Field:
    """What lies in any of the shapes."""
    for other in others:
        first = np.minimum(first, other)
    return first


def blend(first: Field, second: Field, width: float) -> Field:
    """Both shapes joined by a fillet about `width` wide."""
    near = np.maximum(width - np.abs(first - second), 0.0)
    return np.minimum(first, second) - near * near * (0.25 / width)


def minus(first: Field, second: Field) -> Field:
    """What lies in the first shape but not in the second."""
    return np.maximum(first, -second)


def turned(x: Field, y: Field, half_tangent: float) -> tuple[Field, Field]:
    """The points in axes turned clockwise (as y points down) by the angle of which `half_tangent` is tan(angle / 2)."""
    cosine, sine = rotation(half_tangent)
    return x * cosine + y * sine, y * cosine - x * sine


def rotation(half_tangent: Number) -> tuple[Number, Number]:
    """Cosine and sine of an angle from the tangent of its half: exact arithmetic, where sin and cos are not."""
    square = half_tangent * half_tangent
    return (1.0 - square) / (1.0 + square), 2.0 * half_tangent / (1.0 + square)


def clamped(values: Field) -> Field:
    """Values below 0 become 0, above 1 become 1."""
    low = np.maximum(values, 0.0)
    return np.minimum(low, 1.0, out=low)


def coverage(distance: Field, pixels_per_unit: float | Field) -> Field:
    """Share (0 to 1) of each pixel that the shape covers, from the distance of the pixel's centre.

    A straight outline sweeps a pixel evenly while its distance goes from half a pixel to minus half: cheaper than
    supersampling, and without its steps.
    """
    inside = distance * -pixels_per_unit
    inside += 0.5
    np.maximum(inside, 0.0, out=inside)
    return np.minimum(inside, 1.0, out=inside)


@dataclass(frozen=True)
class Frame:
    """Axes laid into m pictures, each array (m,): the origin (pixels), the length of a unit (pixels), the direction."""

    x: Field
    y: Field
    unit: Field
    cosine: Field
    sine: Field
    facing: Field  # 1 where x points to the right, -1 where the axes are mirrored

    def take(self, rows: NDArray[np.int64]) -> "Frame":
        """The axes of these pictures."""
        return Frame(self.x[rows], self.y[rows], self.unit[rows], self.cosine[rows], self.sine[rows], self.facing[rows])

    def at(self, x: float | Field, y: float | Field, scale: float = 1.0) -> "Frame":
        """Parallel axes with their origin at this point of these, their unit `scale` of these units long."""
        across, down = self.facing * x, y
        return Frame(
            self.x + self.unit * (self.cosine * across - self.sine * down),
            self.y + self.unit * (self.sine * across + self.cosine * down),
            self.unit * scale,
            self.cosine,
            self.sine,
            self.facing,
        )

    def upright(self) -> "Frame":
        """Axes with the same origin and unit, neither turned nor mirrored."""
        one = np.ones_like(self.x)
        return Frame(self.x, self.y, self.unit, one, one * 0.0, one)


class Pen:
    """A window of one size into each of m pictures, and the brush that paints there.

    `x`, `y` (m k l) are the centres of the window's pixels in the axes of a frame. Colours are float32 `m 3`, 0 to 1.
    """

    margin = 4  # pixels that a window is wider than its box: one for rounding, the others for soft outlines

    def __init__(
        self, planes: Field, rows: NDArray[np.int64], frame: Frame, box: Box, largest_unit: float, slant: float = 0.0
    ) -> None:
        """Open windows about `box` (units of `frame`) in the pictures `rows` (m,) of `planes` (n 3 h w, h = w).

        They are large enough for a unit of `largest_unit` pixels and for axes turned by an angle of sine `slant`,
        whatever the frame holds: a window that followed its batch would be as exact, but not as fast.
        """
        size = planes.shape[-1]
        left, top, right, bottom = box
        across, down = right - left + slant * (bottom - top), bottom - top + slant * (right - left)
        self._height, self._width = (min(size, int(side * largest_unit) + self.margin) for side in (down, across))
        middle = frame.at((left + right) / 2, (top + bottom) / 2)
        self._top = np.clip((middle.y - (self._height - 1) / 2).astype(np.int64), 0, size - self._height)
        self._left = np.clip((middle.x - (self._width - 1) / 2).astype(np.int64), 0, size - self._width)
        self._rows = rows
        self._pictures = self._windows(planes)
        self._colours = self._pictures[rows, :, self._top, self._left]
        self._unit = frame.unit[:, None, None]

        right_of = (self._left[:, None] + np.arange(self._width) + 0.5).astype(np.float32) - frame.x[:, None]
        below = (self._top[:, None] + np.arange(self._height) + 0.5).astype(np.float32) - frame.y[:, None]
        cosine, sine = (frame.cosine / frame.unit)[:, None], (frame.sine / frame.unit)[:, None]
        facing = frame.facing[:, None]
        self.x = (facing * cosine * right_of)[:, None, :] + (facing * sine * below)[:, :, None]
        self.y = (cosine * below)[:, :, None] - (sine * right_of)[:, None, :]
        self._reach: Field = np.full(self.x.shape, np.inf, dtype=np.float32)
        self._inside = self._reach

    def paint(self, distance: Field, colour: Field, outline: float = 0.0) -> None:
        """A shape in `colour`, lit from above, with a dark `outline` (units) inside its edge."""
        self._reach = np.minimum(self._reach, distance)
        if outline:
            self._cover(coverage(distance, self._unit), ink(colour)[:, :, None, None])
        self._inside = coverage(distance + outline, self._unit)
        light = 1.06 - 0.13 * self.y
        self._cover(self._inside, colour[:, :, None, None] * light[:, None])

    def detail(self, distance: Field, colour: Field, strength: float = 1.0, softness: float = 0.0) -> None:
        """A flat shape on the last one painted and not beyond it, its edge as wide as `softness` (units)."""
        self._cover(np.minimum(self._soft(distance, softness), self._inside) * strength, colour[:, :, None, None])

    def tint(self, distance: Field, colour: Field, strength: float, softness: float = 0.0) -> None:
        """A flat translucent shape that does not count as painted: shadows, the inside of a bubble."""
        self._cover(self._soft(distance, softness) * strength, colour[:, :, None, None])

    def lift(self) -> None:
        """Put the window's pixels back into the pictures."""
        self._pictures[self._rows, :, self._top, self._left] = self._colours

    def stamp(self, planes: NDArray[Any], value: int) -> None:
        """Set `planes` (n h w) to `value` at the pixels whose centre was painted."""
        windows = self._windows(planes)
        values = windows[self._rows, self._top, self._left]
        values[self._reach < 0] = value
        windows[self._rows, self._top, self._left] = values

    def _soft(self, distance: Field, softness: float) -> Field:
        return coverage(distance, 1.0 / softness if softness else self._unit)

    def _cover(self, alpha: Field, colours: Field) -> None:
        # Not colours + alpha * (new - colours): where alpha is 1, nothing of what lies behind may stay, even rounded.
        self._colours *= (1.0 - alpha)[:, None]
        self._colours += colours * alpha[:, None]

    def _windows(self, planes: NDArray[Any]) -> NDArray[Any]:
        """Every window of the pen's size in planes `... h w`, by its upper left pixel; a writable view."""
        shape = (self._height, self._width)
        return sliding_window_view(planes, shape, axis=(-2, -1), writeable=True)


def ink(colours: Field) -> Field:
    """Colours of the outlines about shapes in `colours` (m 3): darker, and towards plum."""
    return colours * 0.42 + np.array([0.07, 0.02, 0.08], dtype=np.float32)
