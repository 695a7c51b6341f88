"""The grid pointing game: against Attribution-Evaluation's own numbers, by hand, and on a model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.evaluation.grid_pointing import choose_images, explain_cells, grid_chance, grid_pointing_game, mosaic
from glasszoo.evaluation.methods import map_method


@pytest.mark.parametrize("side", [2, 3])
def test_scores_agree_with_attribution_evaluation(side: int) -> None:
    golden = np.load(Path(__file__).parents[1] / "golden" / "gridpg.npz")
    maps = torch.from_numpy(golden[f"maps_{side}"])[:, :, 0]
    pixels = side * int(golden[f"cell_{side}"])
    scores = grid_pointing_game(maps, (pixels, pixels))[0]
    theirs = torch.from_numpy(golden[f"scores_{side}"]).view(side**2, -1).T  # all mosaics of cell 0 come first
    torch.testing.assert_close(scores, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("cell", [(8, 8), (6, 10)])
def test_uniform_maps_score_chance_and_the_own_cell_scores_one(side: int, cell: tuple[int, int]) -> None:
    size = (side * cell[0], side * cell[1])
    uniform = grid_pointing_game(torch.full((2, side**2, 3, 4), 0.7), size)
    torch.testing.assert_close(uniform, torch.full_like(uniform, grid_chance(side)), atol=1e-6, rtol=0)
    own = mosaic(torch.eye(side**2)[:, :, None, None, None].expand(-1, -1, 1, *cell))[:, 0][None]
    assert (grid_pointing_game(own, size) == 1).all()
    away = own.roll(1, 1) if side > 1 else -own
    assert (grid_pointing_game(away, size) == 0).all()


def test_evidence_against_does_not_count_and_nothing_scores_zero() -> None:
    maps = torch.zeros(3, 1, 4, 2, 2)
    maps[0, 0, :, 0, 0], maps[0, 0, :, 1, 1], maps[0, 0, :, 0, 1] = 3.0, 1.0, -5.0
    maps[1] = -1.0
    maps[2, 0, 1] = torch.nan
    scores = grid_pointing_game(maps, (2, 2))
    assert scores[0, 0].tolist() == [0.75, 0, 0, 0.25]
    assert scores[1, 0].tolist() == [0] * 4
    assert scores[2, 0].isnan().tolist() == [False, True, False, False]
    assert grid_pointing_game(torch.full((1, 4, 2, 2), 1e-8), (2, 2)).tolist() == [[[0] * 4]], "below 1e-7 in all"


def test_mosaics_are_laid_in_reading_order() -> None:
    images = torch.arange(4.0)[None, :, None, None, None].expand(1, 4, 3, 2, 3)
    assert mosaic(images)[0, 0, ::2, ::3].tolist() == [[0, 1], [2, 3]]
    assert mosaic(images).shape == (1, 3, 4, 6)
    with pytest.raises(InputError, match="a square number of images, got 5"):
        mosaic(torch.zeros(1, 5, 3, 2, 2))


@pytest.mark.parametrize("shape", [(4, 2, 2), (1, 5, 2, 2), (1, 1, 1, 4, 2, 2)])
def test_maps_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="n², h, w"):
        grid_pointing_game(torch.rand(shape), (4, 4))


def test_a_mosaic_divides_into_equal_cells() -> None:
    with pytest.raises(InputError, match="a mosaic of 5×4 pixels does not divide into 2×2 equal cells"):
        grid_pointing_game(torch.rand(1, 4, 2, 2), (5, 4))
    with pytest.raises(InputError, match="at least one image a row, got 0"):
        grid_chance(0)


def test_images_are_sure_of_distinct_classes_and_used_once() -> None:
    torch.manual_seed(0)
    confidences, labels = torch.rand(200), torch.randint(7, (200,))
    chosen = choose_images(confidences, labels, 2, 1000, least=0.5)
    assert chosen.shape[1] == 4 and len(chosen.unique()) == chosen.numel()
    assert (confidences[chosen] >= 0.5).all()
    assert all(len(own.unique()) == 4 for own in labels[chosen])
    sure = int((confidences >= 0.5).sum())
    assert chosen.numel() > sure - 4, "no more than a mosaic's images are left over"
    assert choose_images(confidences, labels, 2, 3, least=0.5).equal(chosen[:3]), "fewer are the first of more"
    assert not choose_images(confidences, labels, 2, 1000, least=0.5, seed=1).equal(chosen)


def test_the_surest_come_first_and_their_places_are_drawn() -> None:
    labels = torch.arange(4).repeat(100)
    confidences = torch.linspace(0.999, 0.99, 400)
    chosen = choose_images(confidences, labels, 2, 100)
    assert chosen[0].sort().values.tolist() == [0, 1, 2, 3] and chosen[99].sort().values.tolist() == list(
        range(396, 400)
    )
    at_first_place = (labels[chosen[:, 0]] == 0).sum()
    assert 10 < at_first_place < 45, "no class always has the same cell"


def test_too_few_classes_are_told() -> None:
    with pytest.raises(InputError, match="9 classes with an image of confidence 0.99 or more, but 2 have one"):
        choose_images(torch.tensor([0.999, 0.99, 0.5]), torch.arange(3), 3, 10)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-2, 1e4))
def test_scores_add_up_to_no_more_than_a_whole_and_know_no_unit(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 1, 1, 5, 5, generator=generator).expand(2, 3, 4, 5, 5)  # one map for all four classes
    scores = grid_pointing_game(maps, (12, 8))
    torch.testing.assert_close(scores.sum(-1), torch.ones(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(grid_pointing_game(maps * scale, (12, 8)), scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["built-in", "grad-cam", "random", "uniform"])
def test_any_explainer_plays(name: str) -> None:
    torch.manual_seed(0)
    model = glasszoo.create_model("test_resnet", head="cam", num_classes=5).eval()
    classes, indices = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]]), torch.arange(2)
    mosaics = mosaic(torch.rand(2, 4, 3, 32, 48))
    method = map_method(name, model)
    with torch.no_grad():
        maps = explain_cells(method.explain, mosaics, classes, indices)
        scores = grid_pointing_game(maps, (64, 96))[0]
        alone = explain_cells(method.explain, mosaics[1:], classes[1:], indices[1:])
    assert scores.shape == (2, 4) and ((scores >= 0) & (scores <= 1)).all()
    torch.testing.assert_close(alone[0], maps[1], atol=1e-6, rtol=1e-4)
    if name == "random":
        assert not maps[0, 0].equal(maps[0, 1]), "each cell's class has a draw of its own"


def test_a_model_that_sees_cells_alone_points_at_them() -> None:
    """Classes told by colour, a 1×1 convolution: evidence for a class can lie in its own cell alone."""
    colours = torch.eye(4)

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        return torch.einsum("bchw,bc->bhw", images, colours[classes]) - 0.5

    images = colours[None, :, :, None, None].expand(1, 4, 4, 6, 8)
    maps = explain_cells(explain, mosaic(images), torch.arange(4)[None], torch.zeros(1, dtype=torch.long))
    assert grid_pointing_game(maps, (12, 16)).tolist() == [[[1] * 4]]
