"""Signed distances: areas and slopes as geometry has them, in float32 throughout."""

from collections.abc import Callable

import numpy as np
import pytest

from glasszoo.data import signed_distance as sd
from glasszoo.data.signed_distance import Field, Frame, Pen

SHAPES: dict[str, tuple[Callable[[Field, Field], Field], float]] = {
    "circle": (lambda x, y: sd.circle(x, y, 0.5), np.pi * 0.25),
    "ring": (lambda x, y: sd.ring(x, y, 0.5, 0.1), np.pi * (0.36 - 0.16)),
    "ellipse": (lambda x, y: sd.ellipse(x, y, 0.7, 0.4), np.pi * 0.28),
    "box": (lambda x, y: sd.box(x, y, 0.6, 0.3), 0.72),
    "rounded box": (lambda x, y: sd.box(x, y, 0.6, 0.3, 0.1), 0.72 - (4 - np.pi) * 0.01),
    "capsule": (lambda x, y: sd.capsule(x, y, (-0.4, -0.3), (0.4, 0.3), 0.2), 0.4 + np.pi * 0.04),
    "polygon": (lambda x, y: sd.polygon(x, y, ((-0.7, 0.0), (0.0, -0.6), (0.7, 0.5), (0.0, 0.1))), 0.49),
    "star": (lambda x, y: sd.star(x, y, 0.8, 0.5), 5 * 0.8 * 0.4 * np.sin(np.pi / 5)),
    "lens": (lambda x, y: sd.lens(x, y, 0.6, 0.6), np.pi * 0.36),
    "heart": (lambda x, y: sd.heart(x, y, 1.0), 4 * 0.56**2 + np.pi * 0.56**2),
    "crescent": (lambda x, y: sd.crescent(x, y, 0.5, 1.0, 0.5), np.pi * 0.25),
    "union": (lambda x, y: sd.union(sd.circle(x - 0.4, y, 0.2), sd.circle(x + 0.4, y, 0.2)), np.pi * 0.08),
    "minus": (lambda x, y: sd.minus(sd.circle(x, y, 0.6), sd.circle(x, y, 0.3)), np.pi * 0.27),
    "blend": (lambda x, y: sd.blend(sd.circle(x - 0.5, y, 0.2), sd.circle(x + 0.5, y, 0.2), 0.1), np.pi * 0.08),
}


def grid(pixels: int) -> tuple[Field, Field]:
    """Pixel centres over the square from -1 to 1."""
    centres = ((np.arange(pixels) + 0.5) / pixels * 2 - 1).astype(np.float32)
    return np.broadcast_to(centres, (pixels, pixels)), np.broadcast_to(centres[:, None], (pixels, pixels))


@pytest.mark.parametrize("name", SHAPES)
def test_coverage_adds_up_to_the_area(name: str) -> None:
    shape, area = SHAPES[name]
    x, y = grid(100)
    distance = shape(x, y)
    assert distance.dtype == np.float32
    assert sd.coverage(distance, 50.0).mean() * 4 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("name", SHAPES)
def test_distance_rises_by_one_a_unit_at_the_outline(name: str) -> None:
    x, y = grid(400)
    distance = SHAPES[name][0](x, y).astype(np.float64)
    down, across = np.gradient(distance, 2 / 400)
    slopes = np.hypot(down, across)[np.abs(distance) < 0.01]
    # At corners, where two sides meet, the difference of two pixels is smaller.
    assert np.quantile(slopes, 0.1) > 0.93
    assert slopes.max() < 1.07


def test_star_points_up_and_heart_points_down() -> None:
    x, y = (np.array(values, dtype=np.float32) for values in ([0, 0, 0.3, 0.3], [-0.9, 0.9, -0.6, 0.6]))
    assert (sd.star(x[:2], y[:2], 1.0, 0.5) < 0).tolist() == [True, False]
    assert (sd.heart(x[2:], y[2:], 0.9) < 0).tolist() == [True, False]


def test_turned_axes() -> None:
    x, y = sd.turned(np.array([1.0, 0.0], dtype=np.float32), np.array([0.0, 1.0], dtype=np.float32), np.tan(np.pi / 12))
    np.testing.assert_allclose([x, y], [[3**0.5 / 2, 0.5], [-0.5, 3**0.5 / 2]], atol=1e-6)


@pytest.mark.parametrize("facing", [1.0, -1.0])
def test_frame_and_pen_agree_where_a_point_lies(facing: float) -> None:
    one = np.ones(1, dtype=np.float32)
    cosine, sine = sd.rotation(one * np.float32(0.1))
    frame = Frame(one * 20, one * 14, one * 8, cosine, sine, one * np.float32(facing))
    picture = np.zeros((1, 3, 40, 40), dtype=np.float32)
    pen = Pen(picture, np.array([0]), frame, (-1.5, -1.0, 1.5, 1.0), 8.0, 0.3)
    pen.paint(sd.circle(pen.x - 1.0, pen.y + 0.5, 0.4), np.ones((1, 3), dtype=np.float32))
    pen.lift()
    disc = picture[0, 0] > 0.5
    middle = frame.at(1.0, -0.5)
    rows, columns = disc.nonzero()
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], [middle.x[0], middle.y[0]], atol=0.15)
    assert disc.sum() == pytest.approx(np.pi * (0.4 * 8) ** 2, rel=0.15)


def test_stamp_marks_what_was_painted_and_a_detail_stays_inside() -> None:
    one = np.ones(2, dtype=np.float32)
    frame = Frame(one * 15, one * 15, one * 10, one, one * 0, one)
    pictures, mask = np.zeros((3, 3, 30, 30), dtype=np.float32), np.zeros((3, 30, 30), dtype=bool)
    pen = Pen(pictures, np.array([0, 2]), frame, (-1.0, -1.0, 1.0, 1.0), 10.0)
    pen.paint(sd.circle(pen.x, pen.y, 0.5), np.zeros((2, 3), dtype=np.float32))
    pen.detail(sd.circle(pen.x - 0.5, pen.y, 0.5), np.ones((2, 3), dtype=np.float32))
    pen.lift()
    pen.stamp(mask, True)
    assert [int(area) for area in mask.sum(axis=(1, 2))] == [80, 0, 80]
    assert (pictures[0, 0] > 0.5).sum() > 20
    assert not (pictures[0, 0] > 0.5)[~mask[0]].any()
    assert not pictures[1].any()


def test_what_is_fully_covered_keeps_nothing_of_what_lies_behind() -> None:
    one = np.ones(1, dtype=np.float32)
    seen = []
    for seed in (0, 1):
        picture = np.random.default_rng(seed).random((1, 3, 30, 30), dtype=np.float32)
        pen = Pen(
            picture, np.array([0]), Frame(one * 15, one * 15, one * 10, one, one * 0, one), (-1.0, -1.0, 1.0, 1.0), 10.0
        )
        pen.paint(sd.circle(pen.x, pen.y, 0.9), np.full((1, 3), 0.3, dtype=np.float32))
        pen.lift()
        seen.append(picture[0, :, 10:20, 10:20])
    np.testing.assert_array_equal(seen[0], seen[1])
