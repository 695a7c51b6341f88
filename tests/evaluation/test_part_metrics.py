"""Consistency, stability and purity: by hits drawn by hand, and from maps and points drawn by hand (A11)."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from glasszoo.evaluation.part_metrics import (
    best_points,
    boxes_around,
    cell_centres,
    consistency,
    merged_sides,
    part_hits,
    purity,
    stability,
)

NAN = math.nan


def test_best_points_are_those_of_torchs_bicubic_interpolation() -> None:
    maps = torch.rand(3, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    resized = functional.interpolate(maps, (50, 63), mode="bicubic")
    points = best_points(maps, (50, 63))
    for image, prototype in itertools.product(range(3), range(4)):
        x, y = (points[image, prototype] - 0.5).long().tolist()
        assert resized[image, prototype, y, x] >= resized[image, prototype].max() - 1e-5


def test_cells_are_tiles_of_the_image() -> None:
    assert cell_centres(torch.tensor([0, 2, 5]), (2, 3), (40, 90)).tolist() == [[15, 10], [75, 10], [75, 30]]


def test_part_hits_of_boxes_drawn_by_hand() -> None:
    boxes = boxes_around(torch.tensor([[[10.0, 20.0], [50.0, 20.0]]]), (5.0, 8.0))  # x 2 to 18, y 15 to 25
    points = torch.tensor([[[2.0, 25.0], [18.1, 20.0], [NAN, NAN], [50.0, 14.9]]])
    assert boxes[0, 0].tolist() == [2, 15, 18, 25]
    assert part_hits(boxes, points).tolist() == [[[True, False, False, False], [False, False, False, False]]]


def test_consistency_by_hand() -> None:
    # Five images, of which the last does not count for the first prototype; two parts.
    hits = torch.zeros(5, 3, 2, dtype=torch.bool)
    visible = torch.ones(5, 2, dtype=torch.bool)
    counts = torch.ones(5, 3, dtype=torch.bool)
    counts[4, 0] = False
    hits[:3, 0, 1] = True  # three of the four that count: .75
    hits[:4, 1, 0] = True  # four of five: .8
    counts[:, 2] = False
    scores = consistency(hits, visible, counts)
    assert scores[:2].tolist() == [0, 1] and scores[2].isnan()
    visible[3, 1] = False  # the one that was missed does not show the part: three of three
    assert consistency(hits, visible, counts)[0] == 1
    assert consistency(hits, visible, counts, threshold=0.81)[:2].tolist() == [1, 0]


def test_a_part_that_is_never_visible_makes_nothing_consistent() -> None:
    nothing = torch.zeros(4, 1, 2, dtype=torch.bool)
    counts = torch.ones(4, 1, dtype=torch.bool)
    assert consistency(nothing, nothing[:, 0], counts).tolist() == [0]


def test_stability_by_hand() -> None:
    hits = torch.zeros(4, 2, 3, dtype=torch.bool)
    disturbed = hits.clone()
    disturbed[0, 0, 2] = True
    counts = torch.ones(4, 2, dtype=torch.bool)
    counts[1:3, 0] = False
    assert stability(hits, disturbed, counts).tolist() == [0.5, 1]


def test_purity_looks_at_the_strongest_images_only() -> None:
    hits = torch.zeros(5, 1, 2, dtype=torch.bool)
    hits[:3, 0, 1] = True
    activations = torch.tensor([[0.9], [0.8], [0.1], [0.7], [0.2]])
    assert purity(hits, activations, count=3).item() == pytest.approx(2 / 3)
    assert purity(hits, activations, count=10).item() == pytest.approx(3 / 5)


def test_left_and_right_are_one_part() -> None:
    hits = torch.tensor([[[True, False, False, True]], [[False, False, True, False]]])
    merged = merged_sides(hits, ("left eye", "beak", "right eye", "tail"))
    assert merged.tolist() == [[[True, False, True]], [[True, False, False]]]


SIZE = (40, 40)  # pixels, of 4 × 4 cells of 10 pixels


def maps_with_peaks(cells: list[list[tuple[int, int]]]) -> Tensor:
    """Maps `n p 4 4`, zero but at the cell (row, column) given for each image and prototype."""
    maps = torch.zeros(len(cells), len(cells[0]), 4, 4)
    for image, row in enumerate(cells):
        for prototype, cell in enumerate(row):
            maps[(image, prototype, *cell)] = 1
    return maps


# Five images with a beak at (15, 5) (column 1, row 0), a tail at (35, 35), and a wing at (5, 25) in the first three.
POINTS = torch.tensor([[[15.0, 5.0], [35.0, 35.0], [5.0, 25.0]]] * 3 + [[[15.0, 5.0], [35.0, 35.0], [NAN, NAN]]] * 2)
BEAK, TAIL, WING, NOTHING = (0, 1), (3, 3), (2, 0), (1, 2)
# The first prototype is at the beak in four images, the second at the wing where it is to be seen, the third anywhere.
PEAKS = maps_with_peaks(
    [[BEAK, WING, BEAK], [BEAK, WING, TAIL], [BEAK, WING, NOTHING], [BEAK, TAIL, WING], [NOTHING, NOTHING, BEAK]]
)
OWN = torch.ones(5, 3, dtype=torch.bool)


def hits_of(maps: Tensor, half: float = 6.0) -> Tensor:
    return part_hits(boxes_around(best_points(maps, SIZE), (half, half)), POINTS)


def test_peaks_of_maps_drawn_by_hand_hit_the_parts_that_stand_there() -> None:
    hits = hits_of(PEAKS)
    named = [[["beak", "tail", "wing"][part] for part in row.nonzero()[:, 0].tolist()] for row in hits.flatten(0, 1)]
    expected = ["beak wing beak", "beak wing tail", "beak wing -", "beak tail -", "- - beak"]
    assert named == [[] if name == "-" else [name] for line in expected for name in line.split()]


def test_consistency_of_maps_and_points_by_hand() -> None:
    """The beak in 4 of 5 images; the wing in 3 of the 3 that show it; the beak in 2 of 5."""
    visible = ~POINTS.isnan().any(-1)
    assert consistency(hits_of(PEAKS), visible, OWN).tolist() == [1, 1, 0]
    assert consistency(hits_of(PEAKS), visible, OWN, threshold=0.81).tolist() == [0, 1, 0]
    counts = OWN.clone()
    counts[0] = False  # then the beak in 3 of 4
    assert consistency(hits_of(PEAKS), visible, counts).tolist() == [0, 1, 0]
    assert consistency(hits_of(PEAKS, half=60.0), visible, OWN).tolist() == [1, 1, 1]  # such boxes hold everything


def test_stability_of_maps_and_points_by_hand() -> None:
    """Noise moves the first prototype to the tail in one image, the second to another place without any part."""
    moved = PEAKS.clone()
    moved[0, 0] = maps_with_peaks([[TAIL]])[0, 0]
    moved[4, 1] = maps_with_peaks([[(1, 1)]])[0, 0]
    moved[1, 2], moved[2, 2] = maps_with_peaks([[BEAK]])[0, 0], maps_with_peaks([[WING]])[0, 0]
    scores = stability(hits_of(PEAKS), hits_of(moved), OWN)
    assert scores.tolist() == pytest.approx([4 / 5, 1, 3 / 5])
    counts = OWN.clone()
    counts[3:] = False
    assert stability(hits_of(PEAKS), hits_of(moved), counts).tolist() == pytest.approx([2 / 3, 1, 1 / 3])


def test_purity_of_maps_and_points_by_hand() -> None:
    """Patches around the best cells. Of all five: 4 beaks, 3 wings, 2 beaks; of the three strongest 3, 2 and 1."""
    best, places = PEAKS.flatten(2).max(-1)
    assert (best == 1).all()
    hits = part_hits(boxes_around(cell_centres(places, (4, 4), SIZE), (3.0, 3.0)), POINTS)
    strength = torch.tensor([[5, 5, 5], [4, 4, 4], [3, 1, 3], [2, 3, 2], [1, 2, 1]]).float()
    assert purity(hits, strength).tolist() == pytest.approx([4 / 5, 3 / 5, 2 / 5])
    assert purity(hits, strength, count=3).tolist() == pytest.approx([1, 2 / 3, 1 / 3])
