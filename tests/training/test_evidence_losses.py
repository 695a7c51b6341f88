"""Evidence as a training signal: each term against figures done by hand, and what a step and a run make of it."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.data.augmentation import Augmentation
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Sample, collate
from glasszoo.evaluation.localisation import energy_pointing_game
from glasszoo.heads import CAM, Explained, create_head, registry
from glasszoo.models import BLACK_BOX, ImageClassifier, Preprocessing
from glasszoo.training import Recipe, Trainer, load_recipe
from glasszoo.training.evidence_losses import (
    EVIDENCE_LOSSES,
    evidence_region,
    evidence_terms,
    label_and_runner_up,
)
from glasszoo.training.objective import Objective

RATIOS = ("evidence_energy", "evidence_outside", "class_contrast")
seeds = st.integers(0, 10_000)


def explained(maps: Tensor) -> Explained:
    """Maps `b k h w` as a model hands them out."""
    nothing = maps.new_zeros(maps.shape[:2])
    return Explained(nothing, nothing.long(), maps, nothing, maps[:, :0])


def value(name: str, maps: Tensor, inside: Tensor | None = None) -> Tensor:
    inside = torch.ones(maps.shape[0], *maps.shape[-2:]) if inside is None else inside
    return EVIDENCE_LOSSES[name].compute(explained(maps), inside)


def random_maps(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return maps, torch.rand(shape[0], *shape[-2:], generator=generator, dtype=torch.float64)


def test_figures_done_by_hand() -> None:
    label = torch.tensor([[1.0, 3.0, 0.0], [-4.0, 0.0, 2.0]])
    rival = torch.tensor([[0.5, -9.0, 5.0], [7.0, 1.0, 9.0]])
    inside = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0]])
    maps = torch.stack([label, rival])[None]
    expected = {
        "evidence_l1": 10,
        "evidence_tv": (5 + 3 + 2) + (2 + 3) + (4 + 2),
        "evidence_energy": 1 - 2.5 / 6,
        "evidence_outside": (9 * 0.5 + 16 + 4) / 30,
        "class_contrast": (0.5 + 2) / 6,
    }
    assert expected.keys() == EVIDENCE_LOSSES.keys()
    for name, number in expected.items():
        torch.testing.assert_close(value(name, maps, inside[None]), torch.tensor([number], dtype=torch.float32))


@pytest.mark.parametrize(("name", "best", "worst"), [("evidence_energy", 1, 0), ("evidence_outside", 1, 0)])
def test_all_inside_costs_nothing_and_all_outside_everything(name: str, best: int, worst: int) -> None:
    maps = torch.zeros(2, 1, 4, 4)
    maps[0, 0, 1, 1] = maps[1, 0, 3, 3] = 0.3
    inside = torch.zeros(2, 4, 4)
    inside[:, :2, :2] = 1
    assert value(name, maps, inside).tolist() == [1 - best, 1 - worst]


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from(RATIOS), st.sampled_from([1e-200, 1e-9, 1e-3, 7.0, 1e9, 1e150]))
def test_shares_are_blind_to_scale(seed: int, name: str, scale: float) -> None:
    maps, inside = random_maps(seed, 2, 2, 3, 5)
    torch.testing.assert_close(value(name, scale * maps, inside), value(name, maps, inside), atol=1e-9, rtol=0)


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from(sorted(EVIDENCE_LOSSES)), st.integers(1, 6), st.integers(1, 6))
def test_a_gradient_step_lowers_each_term(seed: int, name: str, height: int, width: int) -> None:
    maps, inside = random_maps(seed, 3, 2, height, width)
    maps.requires_grad_()
    before = value(name, maps, inside)
    assert ((before >= 0) & (before <= 1)).all() or name not in RATIOS
    (slope,) = torch.autograd.grad(before.sum(), maps)
    assert slope.isfinite().all()
    after = value(name, maps - 1e-6 * slope, inside)
    moves = slope.flatten(1).abs().amax(1) > 1e-5
    assert (after[moves] < before[moves]).all() and torch.allclose(after, before, atol=1e-3)


@settings(deadline=None, max_examples=10)
@given(seeds, st.sampled_from(RATIOS))
def test_gradients_are_those_of_finite_differences(seed: int, name: str) -> None:
    """The rescaling by the largest value, a constant to autograd, must not bend them."""
    maps, inside = random_maps(seed, 1, 2, 2, 3)
    assert torch.autograd.gradcheck(lambda maps: value(name, maps, inside), maps.requires_grad_(), atol=1e-4)


def test_energy_steps_raise_the_share_inside() -> None:
    maps, _ = random_maps(0, 4, 1, 5, 5)
    inside = torch.zeros(4, 5, 5, dtype=torch.float64)
    inside[:, :2] = 1
    start = energy_pointing_game(maps[:, 0], inside.bool())
    for _ in range(100):
        maps.requires_grad_()
        (slope,) = torch.autograd.grad(value("evidence_energy", maps, inside).sum(), maps)
        maps = (maps - 2 * slope).detach()
    assert (energy_pointing_game(maps[:, 0], inside.bool()) > start + 0.2).all()


def test_contrast_parts_two_classes_that_share_cells() -> None:
    """The label keeps what is its own; the rival gives way where it is weaker, the label where it is."""
    label, rival = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[1.0, 3.0, -1.0]])
    maps = torch.stack([label, rival])[None].requires_grad_()
    (slope,) = torch.autograd.grad(value("class_contrast", maps).sum(), maps)
    assert slope[0, 0, 0].sign().tolist() == [-1, 1, -1] and slope[0, 1, 0].sign().tolist() == [1, 0, 0]


@pytest.mark.parametrize("name", sorted(EVIDENCE_LOSSES))
def test_a_map_of_nothing_is_no_nan(name: str) -> None:
    maps = torch.zeros(2, 2, 3, 3, requires_grad=True)
    result = value(name, maps)
    result.sum().backward()
    assert result.isfinite().all() and maps.grad is not None and maps.grad.isfinite().all()


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_area_is_the_pointing_game_of_flat_tiles(seed: int, height: int, width: int, stride: int) -> None:
    """The second computation: the score of `evaluation` on the map drawn pixel by pixel, each cell a tile."""
    maps, chance = random_maps(seed, 3, 1, height, width)
    generator = torch.Generator().manual_seed(seed)
    region = torch.rand(3, height * stride, width * stride, generator=generator) < chance.mean()
    region[:, 0, 0] = True
    tiles = maps[:, 0].repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    mean, count = evidence_terms(["evidence_energy"], explained(maps.float()), region)["evidence_energy"]
    torch.testing.assert_close(1 - mean, energy_pointing_game(tiles, region).mean(), atol=1e-5, rtol=0)
    assert count == 3


def test_a_lesion_smaller_than_a_cell_still_counts() -> None:
    region = torch.zeros(1, 64, 64, dtype=torch.bool)
    region[0, 40:42, 8:10] = True
    maps = torch.zeros(1, 1, 2, 2, requires_grad=True)
    mean, count = evidence_terms(["evidence_energy"], explained(maps + 1), region)["evidence_energy"]
    (slope,) = torch.autograd.grad(mean, maps)
    assert count == 1 and slope[0, 0].argmin() == 2


def test_images_without_a_region_are_left_out() -> None:
    maps, _ = random_maps(0, 3, 2, 4, 4)
    maps.requires_grad_()
    region = torch.zeros(3, 8, 8, dtype=torch.bool)
    region[1, :4] = True
    terms = evidence_terms(sorted(EVIDENCE_LOSSES), explained(maps), region)
    assert {name: int(count) for name, (_, count) in terms.items()} == {
        "class_contrast": 3, "evidence_energy": 1, "evidence_l1": 3, "evidence_outside": 1, "evidence_tv": 3,
    }  # fmt: skip
    alone = evidence_terms(["evidence_energy"], explained(maps[1:2]), region[1:2])["evidence_energy"][0]
    torch.testing.assert_close(terms["evidence_energy"][0], alone)
    (slope,) = torch.autograd.grad(terms["evidence_outside"][0], maps)
    assert slope.flatten(1).abs().amax(1).gt(0).tolist() == [False, True, False]


@pytest.mark.parametrize("name", [name for name, loss in EVIDENCE_LOSSES.items() if loss.needs_region])
def test_a_batch_without_any_region_gives_zero_with_a_graph(name: str) -> None:
    maps, _ = random_maps(0, 3, 1, 4, 4)
    maps.requires_grad_()
    mean, count = evidence_terms([name], explained(maps), torch.zeros(3, 8, 8, dtype=torch.bool))[name]
    mean.backward()
    assert mean == 0 and count == 0 and maps.grad is not None and not maps.grad.any()


def sample(mask: Tensor | None = None, boxes: list[list[float]] | None = None, side: int = 6) -> Sample:
    made = Sample(image=torch.zeros(3, side, side), label=0, id="x")
    if mask is not None:
        made["mask"] = tv_tensors.Mask(mask)
    if boxes is not None:
        made["boxes"] = tv_tensors.BoundingBoxes(
            torch.tensor(boxes).reshape(-1, 4), format="XYXY", canvas_size=(side, side)
        )
    return made


def test_the_region_is_the_mask_or_else_the_boxes() -> None:
    mask = torch.zeros(6, 6, dtype=torch.uint8)
    mask[1:3, 2:5], mask[4:] = 255, 128
    boxes = [[1.0, 0.0, 3.0, 2.0], [4.4, 4.6, 6.0, 6.0]]
    batch = collate([sample(mask, boxes), sample(None, boxes), sample(), sample(None, []), sample(0 * mask, boxes)])
    region = evidence_region(batch)
    assert region.shape == (5, 6, 6) and region.dtype == torch.bool
    assert torch.equal(region[0], mask == 255)
    in_boxes = [[(1 <= x < 3 and y < 2) or (x >= 4 and y >= 5) for x in range(6)] for y in range(6)]
    assert region[1].tolist() == in_boxes
    assert not region[2:].any(), "nothing is known of two images, and one mask shows nothing"


def test_the_region_moves_with_the_image() -> None:
    """A bright square under a mask: after crop, flip and rotation the mask is still where the image is bright."""
    mask = torch.zeros(48, 48, dtype=torch.uint8)
    mask[6:30, 10:26] = 255
    image = Image.fromarray(mask.numpy()).convert("RGB")

    class Squares:
        classes, labels, groups = ("a",), torch.zeros(8).long(), torch.arange(8)

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Sample:
            return Sample(image=image, label=0, id=str(index), mask=tv_tensors.Mask(mask))

    augmentation = Augmentation(scale=(0.3, 1.0), hflip=0.5, vflip=0.5, rotation=30)
    to_tensor = Preprocessing((3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3).to_tensor()
    transform = v2.Compose([augmentation.transform((32, 32), InterpolationMode.BILINEAR), to_tensor])
    batch = next(iter(Loader(Squares(), transform, 8)))
    region = evidence_region(batch)
    assert (region == (batch.images.mean(1) > 0.5)).float().mean() > 0.97 and region.any()
    assert len({tuple(one.flatten().tolist()) for one in region}) > 4, "no two crops alike"


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(2, 6))
def test_the_rival_is_the_strongest_other_class(seed: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, num_classes, generator=generator)
    labels = torch.randint(num_classes, (5,), generator=generator)
    chosen = label_and_runner_up(labels)(logits)
    for row, label, (first, second) in zip(logits.tolist(), labels.tolist(), chosen.tolist(), strict=True):
        assert first == label and second == max((c for c in range(num_classes) if c != label), key=row.__getitem__)


def test_explain_takes_a_choice_made_from_the_logits() -> None:
    head = create_head("cam", 5, 4)
    features, labels = torch.randn(3, 5, 2, 2), torch.tensor([3, 0, 1])
    chosen = head(features, label_and_runner_up(labels))
    assert torch.equal(chosen.maps, head(features, chosen.classes).maps) and chosen.classes[:, 0].equal(labels)
    with pytest.raises(InputError, match=r"class ids of shape \(3,\) or \(3, k\) expected"):
        head(features, lambda logits: logits.argmax(1)[:2])


# ---- in the objective


def model(head: str = "cam", num_classes: int = 3) -> ImageClassifier:
    torch.manual_seed(0)
    return glasszoo.create_model("test_resnet", head=head, num_classes=num_classes)


def test_only_what_is_named_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    own = model()
    asked: list[Any] = []
    forward = own.forward_with_losses

    def watched(images: Tensor, targets: Tensor | None, explain: Any = 0) -> Any:
        asked.append(explain)
        return forward(images, targets, explain)

    monkeypatch.setattr(own, "forward_with_losses", watched)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([2, 0])
    plain = Objective(own, 0.0, {})(images, labels)
    energy = Objective(own, 0.0, {"evidence_l1": 2.0})(images, labels)
    both = Objective(own, 0.0, {"evidence_l1": 0.0, "class_contrast": 3.0})(images, labels)
    assert asked[0] == 0 and asked[1] is labels and asked[2](plain.logits).shape == (2, 2)
    assert list(plain.terms) == ["classification"] and plain.counts == {}
    torch.testing.assert_close(energy.total, plain.total + 2 * energy.terms["evidence_l1"])
    torch.testing.assert_close(both.total, plain.total + 3 * both.terms["class_contrast"])
    assert not Objective(own, 0.0, {"class_contrast": 1.0}).needs_region
    assert Objective(own, 0.0, {"evidence_outside": 1.0}).needs_region


def test_what_cannot_work_is_named() -> None:
    with pytest.raises(InputError, match=r"loss_weights.evidence_tv: head 'black_box' has no evidence to train"):
        Objective(model(BLACK_BOX), 0.0, {"evidence_tv": 1.0})
    with pytest.raises(InputError, match="class_contrast: there is no second class"):
        Objective(model(num_classes=1), 0.0, {"class_contrast": 1.0})
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([2, 0])
    with pytest.raises(InputError, match="unknown loss term 'evidence_enrgy': did you mean 'evidence_energy'"):
        Objective(model(), 0.0, {"evidence_enrgy": 1.0})(images, labels)
    with pytest.raises(InputError, match="unknown loss term 'clasification': did you mean 'classification'"):
        Objective(model(), 0.0, {"clasification": 1.0})(images, labels)


def test_a_heads_own_term_of_the_same_name_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(CAM):
        def losses(self, state: Any, targets: Tensor) -> dict[str, Tensor]:
            return {"evidence_l1": self.classifier.weight.sum() * 0 + 42}

        def loss_weights(self) -> dict[str, float]:
            return {"evidence_l1": 0.5}

    monkeypatch.setitem(registry._HEADS, "own", Own)
    result = Objective(model("own"), 0.0, {"evidence_l1": 1.0})(torch.randn(2, 3, 64, 64), torch.tensor([2, 0]))
    assert result.terms["evidence_l1"] == 42 and result.counts == {}


# ---- in a run

RECIPE = """
data: {name: critters, options: {size: 32, count: 120, rule: conjunction}, validation: 0.2, batch_size: 16}
model: {backbone: test_byobnet, output_stride: 8, image_size: 32, crop_pct: 1.0}
optimizer: {lr: 1e-2, clip_grad: 5.0}
augmentation: {scale: [0.6, 1.0]}
epochs: 2
"""


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return load_recipe(str(path), overrides)


def run(recipe: Recipe, folder: Path) -> tuple[list[dict[str, str]], dict[str, Tensor]]:
    Trainer(recipe, folder, device="cpu", shows_progress=False).fit()
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file)), load_file(folder / "last" / "model.safetensors")


def test_a_run_learns_where_the_evidence_belongs(tmp_path: Path) -> None:
    """The same run without the term, with it at weight 0, and with it: only the last one moves the evidence."""
    _, plain = run(recipe(tmp_path), tmp_path / "plain")
    watched, same = run(recipe(tmp_path, "loss_weights.evidence_energy=0"), tmp_path / "watched")
    taught, _ = run(recipe(tmp_path, "loss_weights={evidence_energy: 10, evidence_l1: 0}"), tmp_path / "taught")
    assert all(torch.equal(same[name], weight) for name, weight in plain.items()), "masks changed the images"
    assert "evidence_l1" in taught[0] and "evidence_l1" not in watched[0]
    assert float(taught[-1]["evidence_energy"]) < float(watched[-1]["evidence_energy"]) - 0.05


def folder_of(tmp_path: Path, masked: int) -> Path:
    """Sixteen images, `masked` of them with a mask that covers the left half."""
    rows = ["split,class,image,mask"]
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    mask.save(tmp_path / "mask.png")
    for number in range(16):
        Image.effect_noise((32, 32), 60).convert("RGB").save(tmp_path / f"{number}.png")
        rows.append(f"train,{'ab'[number % 2]},{number}.png,{'mask.png' if number < masked else ''}")
    (tmp_path / "index.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.parametrize("masked", [16, 5])
def test_the_reported_term_is_a_mean_over_the_images_that_have_one(tmp_path: Path, masked: int) -> None:
    """A frozen network shows every image the same: the figure of an epoch is that of one batch of them all."""
    own = recipe(
        tmp_path, f"data.name={folder_of(tmp_path, masked)}", "data.options={}", "data.batch_size=3", "epochs=1",
        "augmentation={crop: false, hflip: 0}", "loss_weights.evidence_energy=0", "optimizer.lr=0",
        "optimizer.weight_decay=0", 'phases=[{trains: ["head.*"]}]',
    )  # fmt: skip
    trainer = Trainer(own, tmp_path / "run", device="cpu", shows_progress=False)
    trainer.fit()
    batches = list(trainer.loaders.training)
    images, labels = (torch.cat([batch[place] for batch in batches]) for place in (0, 1))  # type: ignore[misc]
    region = torch.cat([evidence_region(batch) for batch in batches])
    expected, _ = evidence_terms(["evidence_energy"], trainer.model.eval()(images, labels), region)["evidence_energy"]
    assert trainer.progress.history[0]["evidence_energy"] == pytest.approx(expected.item(), abs=1e-5)


def test_a_term_that_no_image_can_teach_is_named(tmp_path: Path) -> None:
    own = recipe(
        tmp_path, f"data.name={folder_of(tmp_path, 0)}", "data.options={}", "data.batch_size=4",
        "loss_weights.evidence_outside=1",
    )  # fmt: skip
    with pytest.raises(InputError, match="loss_weights.evidence_outside: no training image has a mask or a box"):
        run(own, tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()
