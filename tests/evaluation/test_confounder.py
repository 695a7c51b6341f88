"""Use of a confounding tag: a model that reads some tags and nothing else, and maps that show, hide or miss it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glasszoo import load_pretrained
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.critter_render import _TAG_COLOURS
from glasszoo.data.critters import Critters
from glasszoo.evaluation import METHODS, Conventions, MapMethod
from glasszoo.evaluation.confounder import TagUse, judge_tag_use, weighted_auroc
from glasszoo.models import Preprocessing

READ = 4  # tags of classes below this are read
CHOSEN = Conventions(bootstrap=200)


def field_pixels(images: Tensor) -> Tensor:
    """Where exactly the colour of each tag is: `b k h w`."""
    colours = torch.from_numpy(_TAG_COLOURS).float()[:READ, :, None, None]
    return ((images[:, None] - colours).abs().amax(2) < 1.5 / 255).float()


class Reader(nn.Module):
    """As far as judging looks at a classifier: the tag's class for tags that it reads, else class 7."""

    def __init__(self) -> None:
        super().__init__()
        plain = Preprocessing((3, 64, 64), crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
        self.config = SimpleNamespace(class_names=None, preprocessing=plain)
        self.preprocess, self.num_classes, self.grid, self.contract = plain.transform(), 8, None, None
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor, explain: int = 0) -> SimpleNamespace:
        logits = torch.zeros(len(images), 8)
        logits[:, :READ] = field_pixels(images).sum((2, 3)) * 0.5
        logits[:, 7] = 1
        return SimpleNamespace(logits=logits)


MAPS = {
    "shows": lambda images, classes, indices: field_pixels(images).sum(1) + 1e-9,
    "hides": lambda images, classes, indices: 1 - field_pixels(images).sum(1),
    "flat": lambda images, classes, indices: torch.zeros(len(images), 64, 64),
}


@pytest.fixture
def data() -> Critters:
    dataset = create_dataset("critters", "test", count=48, tag="conflicting")
    assert isinstance(dataset, Critters)
    return dataset


@pytest.fixture
def judged(data: Critters, monkeypatch: pytest.MonkeyPatch) -> TagUse:
    for name, explain in MAPS.items():
        monkeypatch.setitem(
            METHODS, name, lambda model, name=name, explain=explain: MapMethod(name, "post-hoc", explain)
        )
    return judge_tag_use(Reader(), data, list(MAPS), conventions=CHOSEN, progress=False)  # type: ignore[arg-type]


def test_what_the_tag_does_is_known(judged: TagUse) -> None:
    is_read = judged.tags < READ
    assert 10 < is_read.sum() < 38 and (judged.tags != judged.labels).all()
    assert torch.equal(judged.decides, is_read)
    assert torch.equal(judged.predicted, judged.tags.where(is_read, torch.tensor(7)))
    assert (judged.without == 7).all() and (judged.effect[is_read] > 3).all() and (judged.effect[~is_read] == 0).all()
    assert 0.01 < judged.area.mean() < 0.04


def test_maps_that_show_hide_and_miss_it(judged: TagUse) -> None:
    shows, hides, flat = judged.methods
    is_read = judged.decides
    assert (shows.mass[is_read] > 0.99).all() and (shows.mass[~is_read] < 0.04).all()
    assert judged.detection(shows)[:3] == (1, 1, 1)
    assert judged.detection(hides).mean < 0.2, "less evidence where the tag is used"
    assert judged.detection(flat).mean == 0.5


def test_detection_by_hand_with_counts_and_ties() -> None:
    values = torch.tensor([[0.9, 1], [0.5, 1], [0.5, 0], [0.1, 0]]).double()
    counts = torch.tensor([[1, 1, 1, 1], [0, 2, 1, 0], [0, 1, 0, 3], [2, 2, 0, 0]]).double()
    found = weighted_auroc(values, counts)
    assert found[:3].tolist() == [3.5 / 4, 0.5, 1] and found[3].isnan()


def test_batches_do_not_count_and_the_model_stays(data: Critters) -> None:
    model = load_pretrained("cam_test_byobnet.s64_critters").train()
    before = [value.clone() for value in model.state_dict().values()]
    names = ["built-in", "grad-cam", "random"]
    whole, apart = (
        judge_tag_use(
            model, data, names, conventions=CHOSEN, batch_size=size, max_explained=9, progress=False
        )
        for size in (9, 4)
    )  # fmt: skip
    assert model.training and all(torch.equal(*pair) for pair in zip(before, model.state_dict().values(), strict=True))
    torch.testing.assert_close(whole.effect, apart.effect, atol=1e-4, rtol=1e-4)
    for one, two in zip(whole.methods, apart.methods, strict=True):
        torch.testing.assert_close(one.mass, two.mass, atol=1e-4, rtol=1e-4)


def test_images_without_a_tag_are_refused() -> None:
    data: Any = create_dataset("critters", "test", count=8)
    with pytest.raises(InputError, match="each image must show a tag"):
        judge_tag_use(load_pretrained("cam_test_byobnet.s64_critters"), data, ["built-in"], progress=False)
