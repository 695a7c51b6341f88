"""MaxBoxAccV2 and PxAP: against the WSOL evaluation's own numbers, against OpenCV's contours, and by hand."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glasszoo.common.errors import InputError
from glasszoo.evaluation.contour_boxes import best_overlap, box_hits
from glasszoo.evaluation.wsol import (
    OVERLAPS,
    box_accuracies,
    max_box_acc_v2,
    max_box_hits,
    pixel_average_precision,
    pixel_chance,
    pixel_histograms,
)

BOX = torch.tensor([[2, 3, 7, 9]])


@pytest.fixture(scope="module")
def golden(shared) -> dict[str, np.ndarray]:
    return dict(np.load(shared("golden/wsol.npz")))


def test_max_box_acc_equals_the_wsol_evaluation(golden: dict[str, np.ndarray]) -> None:
    boxes = [torch.tensor(own) for own in json.loads(str(golden["boxes"])).values()]
    hits = max_box_hits(torch.from_numpy(golden["maps"]), boxes, (224, 224))[0]
    torch.testing.assert_close(
        box_accuracies(hits)[0], torch.from_numpy(golden["max_box_acc_v2"]) / 100, atol=1e-12, rtol=0
    )
    assert max_box_acc_v2(hits).item() == pytest.approx(golden["max_box_acc_v2"].mean() / 100, abs=1e-12)


def test_pxap_equals_the_wsol_evaluation(golden: dict[str, np.ndarray]) -> None:
    masks = torch.from_numpy(golden["masks"])
    histograms = pixel_histograms(torch.from_numpy(golden["maps"]), masks == 1, masks == 255)[0]
    assert pixel_average_precision(histograms).item() == pytest.approx(golden["pxap"].item() / 100, abs=1e-12)


def contour_hits(values: Tensor, boxes: Tensor) -> Tensor:
    """What the WSOL evaluation finds at cuts 0 to 254 of one map, by OpenCV: `255 3`."""
    cv2 = pytest.importorskip("cv2")
    height, width = values.shape
    found = []
    for cut in range(255):
        image = (values.numpy() > cut).astype(np.uint8) * 255
        contours, _ = cv2.findContours(image, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        corners = [
            (x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in map(cv2.boundingRect, contours)
        ]
        found.append(max((overlap(corner, box) for corner in corners for box in boxes.tolist()), default=0))
    return torch.tensor(found, dtype=torch.float64)[:, None] >= torch.tensor(OVERLAPS, dtype=torch.float64)


def overlap(first: tuple[int, ...], second: list[int]) -> float:
    width, height = (max(0, min(first[2 + i], second[2 + i]) - max(first[i], second[i]) + 1) for i in (0, 1))
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([2, 3, 6, 256]), cells=st.integers(1, 13))
def test_contours_are_opencvs(seed: int, levels: int, cells: int) -> None:
    """Noise, plateaus, rings and islands in holes, objects at the border, maps of any shape; several true boxes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 20, (2,), generator=generator).tolist()
    coarse = torch.rand(2, 1, cells, cells, generator=generator)
    unit = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest" if seed % 2 else "bilinear")[:, 0]
    values = ((unit * levels).floor().clamp(max=levels - 1) * (255 / (levels - 1))).long()
    ends = torch.rand(2, 3, 2, 2, generator=generator).sort(2).values * torch.tensor([width, height])
    boxes = ends.flatten(2).long()
    hits = box_hits(values, boxes, OVERLAPS)
    for image in range(2):
        assert hits[image].equal(contour_hits(values[image], boxes[image]))


def test_a_hole_has_a_box_too() -> None:
    """A ring: its hole, with the pixels around it, is the true box, which the ring's own box overlaps by less."""
    maps = torch.zeros(1, 40, 40)
    maps[0, 2:38, 2:38] = 1
    maps[0, 10:20, 10:20] = 0
    hole = torch.tensor([[9, 9, 21, 21]])  # the contour from 9 to 20, its end one further
    assert (max_box_hits(maps, [hole], (40, 40)) == 1).all()
    maps[0, 12, 0:12] = 0  # a gap: no hole any more
    assert (max_box_hits(maps, [hole], (40, 40)) == 0).all()


def test_overlap_counts_both_corners() -> None:
    """The values of the WSOL evaluation's own tests."""
    degenerate = torch.zeros(1, 4, dtype=torch.long)
    assert best_overlap(degenerate, degenerate[None]).item() == 1
    assert best_overlap(torch.tensor([[1, 2, 5, 6]]), torch.tensor([[[3, 1, 4, 5]]])).item() == pytest.approx(8 / 27)
    boxes = torch.tensor([[1, 1, 3, 3], [4, 4, 5, 5]])
    assert best_overlap(boxes, boxes.flip(0)[:, None]).tolist() == [0, 0]
    assert best_overlap(boxes, torch.tensor([[[1, 1, 3, 3], [-1, -1, -1, -1]]] * 2)).tolist() == [1, 0]


def test_a_map_of_the_box_hits_at_every_cut() -> None:
    maps = torch.zeros(2, 1, 12, 10)
    maps[0, 0, 3:9, 2:7] = 5.0  # its end, one further, is the true box's
    maps[1, 0, :, :] = -maps[0, 0]
    hits = max_box_hits(maps, [BOX], (12, 10))
    assert hits.shape == (2, 1, 255, 3) and hits.dtype == torch.int8
    assert (hits[0] == 1).all()
    # Reversed it is a hole, whose contour is one wider on each side: 72 pixels for the true box's 42.
    assert (hits[1] == torch.tensor([1, 1, 0])).all()


@pytest.mark.parametrize(("elsewhere", "value"), [(0, 0), (3, 3), (-2, -2), (1, torch.nan), (1, torch.inf)])
def test_a_map_without_contour_gives_the_first_pixel(elsewhere: float, value: float) -> None:
    maps = torch.full((1, 6, 6), float(elsewhere))
    maps[0, 2, 2] = value
    boxes = [torch.tensor([[0, 0, 1, 0]])]  # of two pixels, by both corners
    assert (max_box_hits(maps, boxes, (6, 6)) == torch.tensor([1, 1, 0], dtype=torch.int8)).all()


def test_images_without_true_box_do_not_count() -> None:
    maps = torch.zeros(3, 12, 10)
    maps[:, 3:9, 2:7] = 1
    hits = max_box_hits(maps, [BOX, torch.zeros(0, 4), torch.tensor([[8, 0, 9, 1], [0, 10, 1, 11]])], (12, 10))[0]
    assert (hits[1] == -1).all()
    assert box_accuracies(hits).tolist() == [[0.5] * 3], "one of two is found"
    assert box_accuracies(hits[1:2]).isnan().all()
    assert max_box_hits(maps[:0], [], (12, 10)).shape == (1, 0, 255, 3)


def test_boxes_are_cut_to_the_image_and_must_be_boxes() -> None:
    maps = torch.rand(1, 12, 10)
    beyond = max_box_hits(maps, [torch.tensor([[0.9, 0, 10, 12.5]])], (12, 10))
    assert beyond.equal(max_box_hits(maps, [torch.tensor([[0, 0, 9, 11]])], (12, 10)))
    for wrong in (torch.tensor([[5, 5, 4, 9]]), torch.tensor([[-1, 0, 4, 9]]), torch.zeros(2, 3)):
        with pytest.raises(InputError, match="rows of x1 y1 x2 y2"):
            max_box_hits(maps, [wrong], (12, 10))


def test_the_cut_is_one_for_the_whole_set_and_weights_are_copies() -> None:
    # Two images found at one cut each, not the same; a third nowhere.
    hits = torch.zeros(3, 255, 3, dtype=torch.int8)
    hits[0, 10], hits[1, 20] = 1, 1
    assert box_accuracies(hits)[0].tolist() == pytest.approx([1 / 3] * 3)
    weights = torch.tensor([[0, 2, 1], [1, 1, 0], [0, 0, 0]])
    resampled = max_box_acc_v2(hits, weights)
    assert resampled[:2].tolist() == pytest.approx([2 / 3, 1 / 2]) and resampled[2].isnan()
    assert resampled[0] == max_box_acc_v2(hits[[1, 1, 2]])[0]
    with pytest.raises(InputError, match=r"weights of shape \(r, 3\) expected, got \(1, 2\)"):
        max_box_acc_v2(hits, torch.ones(1, 2))


def test_methods_and_batches_do_not_touch() -> None:
    torch.manual_seed(0)
    maps, masks = torch.randn(2, 37, 5, 4), torch.rand(37, 12, 10) < 0.4  # more maps than go at once
    boxes = [torch.tensor([[1, 2, 3 + i % 6, 8]]).repeat(1 + i % 3, 1) for i in range(37)]
    hits, histograms = max_box_hits(maps, boxes, (12, 10)), pixel_histograms(maps, masks)
    for method, image in [(0, 3), (1, 36)]:
        own = maps[method, image][None]
        assert max_box_hits(own, boxes[image : image + 1], (12, 10))[0, 0].equal(hits[method, image])
        assert pixel_histograms(own, masks[image : image + 1])[0, 0].equal(histograms[method, image])


def test_pxap_of_the_mask_of_its_opposite_and_of_nothing() -> None:
    torch.manual_seed(0)
    masks = torch.rand(4, 9, 7) < 0.3
    truth, opposite, constant = pixel_histograms(torch.stack([masks.float(), 1 - masks.float(), masks * 0.0]), masks)
    assert pixel_average_precision(truth).item() == 1
    assert pixel_average_precision(constant).item() == pytest.approx(masks.float().mean().item())
    assert pixel_chance(constant).item() == pytest.approx(masks.float().mean().item())
    # All others are predicted first: the object comes at the lowest threshold, at the share of all pixels.
    assert pixel_average_precision(opposite).item() == pytest.approx(masks.float().mean().item())


def test_pxap_by_hand() -> None:
    # From the highest: object, other, object, other: recall 1/2 at precision 1, then 1/2 more at 2/3.
    histograms = pixel_histograms(
        torch.tensor([[[1.0, 0.8], [0.6, 0.0]]]), torch.tensor([[[True, False], [True, False]]])
    )
    assert pixel_average_precision(histograms[0]).item() == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert histograms[0, 0].nonzero().tolist() == [[0, 1], [600, 0], [800, 1], [1000, 0]]


def test_ignored_pixels_count_neither_way() -> None:
    torch.manual_seed(0)
    maps, masks = torch.rand(1, 9, 7), torch.rand(1, 9, 7) < 0.3
    ignored = torch.rand(1, 9, 7) < 0.5
    histograms = pixel_histograms(maps, masks, ignored)
    assert histograms.sum((0, 1, 2)).tolist() == [masks.sum(), (~masks & ~ignored).sum()]
    with pytest.raises(InputError, match="ignored must be bool"):
        pixel_histograms(maps, masks, ignored[:, :3])
    with pytest.raises(InputError, match="bool masks of shape"):
        pixel_histograms(maps, masks.float())


def test_an_image_with_an_empty_mask_counts_no_pixel() -> None:
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, 2:4] = True
    histograms = pixel_histograms(torch.rand(2, 6, 6), masks)[0]
    assert histograms.sum((1, 2)).tolist() == [36, 0]
    weights = torch.tensor([[1, 5], [0, 1]])
    scores = pixel_average_precision(histograms, weights)
    assert scores[0] == pixel_average_precision(histograms[:1])[0] and scores[1].isnan()
    assert pixel_chance(histograms, weights)[1].isnan()


@given(seed=st.integers(0, 10**6), exponent=st.integers(-20, 20))
@settings(max_examples=20)
def test_only_the_order_of_sizes_matters(seed: int, exponent: int) -> None:
    """A power of two changes no rounding; scores stay in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    maps, masks = torch.randn(3, 4, 4, generator=generator), torch.rand(3, 8, 8, generator=generator) < 0.4
    boxes = [torch.tensor([[1, 1, 5, 6]])] * 3
    hits, histograms = max_box_hits(maps, boxes, (8, 8)), pixel_histograms(maps, masks)
    assert max_box_hits(maps * 2.0**exponent, boxes, (8, 8)).equal(hits)
    assert pixel_histograms(maps * 2.0**exponent, masks).equal(histograms)
    assert 0 <= max_box_acc_v2(hits[0]).item() <= 1
    assert not masks.any() or 0 <= pixel_average_precision(histograms[0]).item() <= 1
