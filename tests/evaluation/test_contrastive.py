"""Why one class and not another: margins that add up, defaults, and pictures."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from glasszoo import create_model, list_heads, load_pretrained
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.evaluation.contrastive import contrast_images, contrastive_evidence
from glasszoo.evaluation.explaining import explain_images
from glasszoo.heads import Contract
from glasszoo.models import BLACK_BOX


def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    data = create_dataset("critters", "test", count=3)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.fromarray(data[number]["image"].permute(1, 2, 0).numpy()).save(path)
    return paths


@pytest.mark.parametrize("head", list_heads())
def test_the_margin_is_the_map_and_the_offset_for_every_head(head: str) -> None:
    torch.manual_seed(0)
    model = create_model("test_resnet", head=head, num_classes=5).eval()
    classes, others = torch.tensor([0, 1, 4]), torch.tensor([3, 0, 2])
    with torch.no_grad():
        found = contrastive_evidence(model, images(), classes, others)
        logits = model(images(), explain=0).logits
    quantity = logits.exp() if model.contract is Contract.PROBABILITY else logits
    rows = torch.arange(3)
    torch.testing.assert_close(found.margin, quantity[rows, classes] - quantity[rows, others])
    scale = quantity.abs().max().item()
    torch.testing.assert_close(found.maps.sum((1, 2)) + found.offset, found.margin, atol=1e-4 * scale, rtol=0)
    with torch.no_grad():
        turned = contrastive_evidence(model, images(), others, classes)
    torch.testing.assert_close(turned.maps, -found.maps)


def test_defaults_are_the_two_highest_and_a_rival_is_never_itself(photographs: list[Path], tmp_path: Path) -> None:
    model = load_pretrained("cam_test_byobnet.s64_critters")
    names = model.class_names
    images = torch.stack([model.preprocess(Image.open(path)) for path in photographs])
    with torch.no_grad():
        ranked = model.eval()(images, explain=0).logits.argsort(1, descending=True)
    for place, told in enumerate(contrast_images(model, photographs, tmp_path / "out", None, None)):
        assert (told.why, told.instead) == (names[ranked[place, 0]], names[ranked[place, 1]])
        assert told.evidence.margin[0] > 0 and Image.open(told.picture).width > 1000
    top = names[ranked[0, 0]]
    (told,) = contrast_images(model, photographs[:1], tmp_path / "out", None, top)
    assert (told.why, told.instead) == (names[ranked[0, 1]], top) and told.evidence.margin[0] < 0
    (told,) = contrast_images(model, photographs[:1], tmp_path / "out", names[ranked[0, 1]], None)
    assert told.instead == top
    (told,) = contrast_images(model, photographs[:1], tmp_path / "out", "2", names[5])
    assert (told.why, told.instead) == (names[2], names[5])


def test_images_of_one_name_have_pictures_of_their_own(photographs: list[Path], tmp_path: Path) -> None:
    model = load_pretrained("cam_test_byobnet.s64_critters")
    told = contrast_images(model, [photographs[0], photographs[0]], tmp_path / "out", None, None)
    assert [each.picture.name for each in told] == ["0.png", "0_2.png"]


def test_no_photograph_is_overwritten(photographs: list[Path]) -> None:
    """Also where the pictures go into their folder."""
    model = load_pretrained("cam_test_byobnet.s64_critters")
    before = [path.read_bytes() for path in photographs]
    told = contrast_images(model, photographs, photographs[0].parent, None, None)
    done = explain_images(model, photographs, photographs[0].parent)
    assert [path.read_bytes() for path in photographs] == before
    assert [each.picture.name for each in told] == [each.picture.name for each in done]
    assert told[0].picture.name == "0_evidence.png" and told[0].picture.exists()


def test_refusals(photographs: list[Path], tmp_path: Path) -> None:
    model = load_pretrained("cam_test_byobnet.s64_critters")
    with pytest.raises(InputError, match="two different classes"):
        contrast_images(model, photographs, tmp_path, model.class_names[1], "1")
    with pytest.raises(InputError, match="unknown class 'x'"):
        contrast_images(model, photographs, tmp_path, "x", None)
    black_box = create_model("test_resnet", head=BLACK_BOX, num_classes=5)
    with pytest.raises(InputError, match="a black box does not explain itself"):
        contrast_images(black_box, photographs, tmp_path, None, None)
    with pytest.raises(InputError, match="a black box does not explain itself"):
        contrastive_evidence(black_box, images(), torch.zeros(3).long(), torch.ones(3).long())
