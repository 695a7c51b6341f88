"""Parameter randomisation and random logit: Quantus, maps whose answer is known, batch invariance."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from glasszoo import create_model
from glasszoo.common.errors import InputError
from glasszoo.evaluation import MapMethod, map_method
from glasszoo.evaluation.methods import built_in
from glasszoo.evaluation.randomising import randomised
from glasszoo.evaluation.sanity import other_classes, parameter_randomisation, random_logit
from glasszoo.models import ImageClassifier

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "skimage_quantus.npz")
INDICES = torch.tensor([4, 0, 17, 9])


def model() -> ImageClassifier:
    torch.manual_seed(0)
    return create_model("test_resnet", head="cam", num_classes=5).eval()


def images(size: int = 64) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def method_by(name: str) -> object:
    return lambda model: map_method(name, model)


def test_agrees_with_quantus() -> None:
    """Quantus chooses its number of bins from the maps unless told; here both take 100, and its MPRT's last layer."""
    own, before, after = model(), *(torch.from_numpy(GOLDEN[name]) for name in ("before", "after"))

    def make(judged: ImageClassifier) -> MapMethod:
        maps = before if judged is own else after
        places = {index: row for row, index in enumerate(INDICES.tolist())}
        return MapMethod("golden", "control", lambda x, classes, indices: maps[[places[i] for i in indices.tolist()]])

    given = torch.zeros(4, 3, *before.shape[1:])
    scores = parameter_randomisation(make, own, given, torch.zeros(4).long(), INDICES, chunk=3)
    torch.testing.assert_close(scores.rise, torch.from_numpy(GOLDEN["rise"]), atol=1e-8, rtol=0)
    torch.testing.assert_close(scores.before, torch.from_numpy(GOLDEN["entropy_before"]), atol=1e-8, rtol=0)
    torch.testing.assert_close(scores.rank_correlation, torch.from_numpy(GOLDEN["last_correlation"]), atol=1e-6, rtol=0)


def test_a_map_that_ignores_the_model_is_found_out() -> None:
    for name in ("random", "centre"):
        make = {
            "random": lambda judged: map_method("random", judged),
            "centre": lambda judged: map_method("centre", judged),
        }
        scores = parameter_randomisation(make[name], model(), images(), torch.zeros(4).long(), INDICES)
        assert scores.rise.tolist() == [0] * 4
        torch.testing.assert_close(scores.rank_correlation, torch.ones(4).double())


def test_a_constant_map_has_no_score() -> None:
    scores = parameter_randomisation(
        lambda judged: map_method("uniform", judged), model(), images(), torch.zeros(4).long(), INDICES
    )
    assert scores.rise.isnan().all() and scores.rank_correlation.isnan().all()
    assert scores.before.tolist() == scores.after.tolist() == [0] * 4


def test_the_model_s_own_map_changes_with_the_model() -> None:
    judged = model().train()
    state = {name: value.clone() for name, value in judged.state_dict().items()}
    given = images(128), torch.arange(4), INDICES  # maps of 4 × 4
    scores = parameter_randomisation(built_in, judged, *given)
    assert judged.training and all(torch.equal(value, state[name]) for name, value in judged.state_dict().items())
    assert scores.rank_correlation.mean() < 0.7 and (scores.rise != 0).all()
    torch.testing.assert_close(scores.rise, scores.after / scores.before - 1)
    shared = parameter_randomisation(built_in, judged, *given, random_model=randomised(judged, 0))
    assert torch.equal(shared.rise, scores.rise)
    assert not torch.equal(parameter_randomisation(built_in, judged, *given, seed=1).rise, scores.rise)


def test_entropy_is_that_of_the_map_over_the_image() -> None:
    """An 8 × 8 map cannot fill 100 bins: its histogram's entropy would be near ln 64 whatever it shows."""
    scores = parameter_randomisation(built_in, model(), images(128), torch.arange(4), INDICES)
    assert (scores.before < np.log(100)).all()
    assert (scores.before > 3).all()


def test_class_agnostic_maps_score_one() -> None:
    given = images(), torch.arange(4), INDICES
    judged = model()
    attention = random_logit(lambda x, classes, indices: judged.backbone(x).sum(1), *given, num_classes=5)
    torch.testing.assert_close(attention.ssim, torch.ones(4).double())
    torch.testing.assert_close(attention.rank_correlation, torch.ones(4).double())
    uniform = random_logit(map_method("uniform", judged).explain, *given, num_classes=5)
    assert uniform.ssim.tolist() == [1] * 4 and uniform.rank_correlation.isnan().all()


def test_maps_of_classes_differ() -> None:
    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        return torch.where((classes == 1)[:, None, None], images[:, 0], -images[:, 0])

    scores = random_logit(explain, images(), torch.ones(4).long(), INDICES, num_classes=3)
    torch.testing.assert_close(scores.rank_correlation, -torch.ones(4).double())
    assert (scores.ssim < 0.9).all()
    judged = model()
    own = random_logit(map_method("built-in", judged).explain, images(), torch.arange(4), INDICES, num_classes=5)
    assert own.rank_correlation.mean() < 0.9 and (own.ssim < 0.99).all()


def test_the_other_class_is_another_and_any() -> None:
    indices = torch.arange(2000)
    for seed in (0, 1):
        others = other_classes(torch.full((2000,), 2), indices, 4, seed)
        counts = others.bincount(minlength=4)
        assert counts[2] == 0 and counts[[0, 1, 3]].min() > 550
    assert torch.equal(others[5:9], other_classes(torch.full((4,), 2), indices[5:9], 4, 1))
    assert not torch.equal(others, other_classes(torch.full((2000,), 2), indices, 4, 0))
    assert other_classes(torch.tensor([0, 1]), indices[:2], 2).tolist() == [1, 0]
    with pytest.raises(InputError, match="no other class among 1"):
        other_classes(torch.zeros(2).long(), indices[:2], 1)


def test_nothing_depends_on_batch_and_chunk() -> None:
    judged, given, classes = model().double(), images().double(), torch.arange(4)
    explain = map_method("built-in", judged).explain
    whole = parameter_randomisation(built_in, judged, given, classes, INDICES)
    logit = random_logit(explain, given, classes, INDICES, num_classes=5)
    for rows in (slice(0, 1), slice(1, 4)):
        part = given[rows], classes[rows], INDICES[rows]
        for expected, found in zip(whole, parameter_randomisation(built_in, judged, *part, chunk=2), strict=True):
            torch.testing.assert_close(found, expected[rows], atol=1e-6, rtol=0)
        for expected, found in zip(logit, random_logit(explain, *part, num_classes=5, chunk=2), strict=True):
            torch.testing.assert_close(found, expected[rows], atol=1e-6, rtol=0)
