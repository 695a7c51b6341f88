"""Classifiers cut into cells: what a cell's logit depends on, maps that are right, and methods that are not."""

import pytest
import torch
from torch import Tensor

from glasszoo import create_model, list_heads, load_pretrained
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.evaluation import evaluate, map_method, mosaics
from glasszoo.evaluation.disconnected import Disconnected, Split
from glasszoo.evaluation.grid_pointing import mosaic
from glasszoo.heads import Contract
from glasszoo.models import BLACK_BOX, ImageClassifier

SPLITS: tuple[Split, ...] = ("image", "features")


def made(head: str = "cam", backbone: str = "test_byobnet") -> ImageClassifier:
    torch.manual_seed(0)
    return create_model(backbone, head=head, num_classes=5).eval()


def cells(seed: int = 1) -> Tensor:
    """Images `2 4 c h w`."""
    return torch.randn(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("head", [*list_heads(), BLACK_BOX])
def test_each_cell_s_logits_are_the_model_s_own(head: str) -> None:
    model = made(head, "test_resnet")
    cut = Disconnected(model, 2, "image").eval()
    with torch.no_grad():
        found = cut(mosaic(cells()), explain=0).logits
        alone = model(cells().flatten(0, 1), explain=0).logits
    torch.testing.assert_close(found, alone.reshape(2, 20), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("head", ["cam", "gated_attention", "protopnet", "multiscale_cam"])
def test_built_in_maps_stay_in_their_cell_and_add_up(head: str, split: Split) -> None:
    model = made(head)
    cut = Disconnected(model, 2, split).eval()
    classes = torch.tensor([7, 18])  # cell 1, class 2; cell 3, class 3
    with torch.no_grad():
        out = cut(mosaic(cells()), classes)
    owed = out.logits.gather(1, classes[:, None])
    assert model.contract is not Contract.PROBABILITY
    torch.testing.assert_close(out.maps.sum((-2, -1)) + out.offset, owed, rtol=1e-4, atol=1e-5)
    height, width = (side // 2 for side in out.maps.shape[-2:])
    inside = torch.stack([out.maps[0, 0, :height, width:], out.maps[1, 0, height:, width:]])
    torch.testing.assert_close(inside.abs().sum((1, 2)), out.maps[:, 0].abs().sum((1, 2)))


def test_other_cells_do_not_change_a_logit_of_images_apart() -> None:
    cut = Disconnected(made(), 2, "image").eval()
    changed = cells()
    changed[:, 0] = cells(2)[:, 0]
    with torch.no_grad():
        one, two = (cut(mosaic(own), explain=0).logits.unflatten(1, (4, 5)) for own in (cells(), changed))
    assert torch.equal(one[:, 1:], two[:, 1:]) and not torch.allclose(one[:, 0], two[:, 0])
    assert (
        map_method("gradient", cut)
        .explain(mosaic(cells()), torch.tensor([0, 0]), torch.zeros(2).long())[:, 64:]
        .abs()
        .max()
        == 0
    )


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="130×131 do not divide into 2×2 equal cells"):
        Disconnected(made(), 2, "image")(torch.zeros(1, 3, 130, 131))


def test_an_evaluation_tells_methods_that_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of the features are right in both; gradients leak where the network sees all cells; uniform maps always."""
    model = load_pretrained("cam_test_byobnet.s64_critters").eval()
    chosen = mosaics.choose_images
    monkeypatch.setattr(mosaics, "choose_images", lambda sure, *given, **how: chosen(sure.clamp(0.99), *given, **how))
    found = evaluate(
        model, create_dataset("critters", "test", count=40, size=64), max_explained=4, progress=False,
        methods=["built-in", "hires-cam", "gradient", "uniform"], metrics=["grid_pointing", "difull", "dipart"],
    )  # fmt: skip
    scores = {method.name: {name: own.mean().item() for name, own in method.scores.items()} for method in found.methods}
    assert scores["built-in"]["difull"] == scores["built-in"]["dipart"] == pytest.approx(1)
    assert scores["hires-cam"]["difull"] == scores["hires-cam"]["dipart"] == pytest.approx(1)
    assert scores["gradient"]["difull"] == pytest.approx(1) and scores["gradient"]["dipart"] < 0.99
    assert scores["uniform"] == pytest.approx(dict.fromkeys(scores["uniform"], 0.25))
    assert 0.25 < scores["built-in"]["grid_pointing"] < 1, "where the whole mosaic may speak for a class"
