"""Swapping cells: by hand, against every choice, and what can never flip."""

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from glasszoo import create_model, load_pretrained
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.evaluation.counterfactual import counterfactual, show_counterfactual
from glasszoo.models import BLACK_BOX, ImageClassifier


def made(head: str = "cam", backbone: str = "test_resnet") -> ImageClassifier:
    torch.manual_seed(0)
    return create_model(backbone, head=head, num_classes=5).eval()


def image(seed: int, size: int = 64) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def with_features(model: ImageClassifier, monkeypatch: pytest.MonkeyPatch, one: Tensor, two: Tensor) -> None:
    """The backbone sees `one` in the first image, `two` in the second."""
    seen = iter((one, two))
    monkeypatch.setattr(model.backbone, "forward", lambda images: next(seen))


def test_first_swap_of_a_linear_head_is_the_best_of_all_and_follows_the_evidence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two classes: the log-probability rises with the margin, so the best pair is the extreme cells of its map."""
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=2).eval()
    channels = model.num_features
    one, two = torch.rand(1, channels, 3, 3), torch.rand(1, channels, 2, 4)
    weight = model.head.get_parameter("classifier.weight").detach()
    with torch.no_grad():
        weight.normal_()
    target = int(model.forward_head(one, None)[0].logits.argmin())
    towards = weight[target] - weight[1 - target]
    own, other = (torch.einsum("d, b d h w -> b h w", towards, each).flatten() for each in (one, two))
    with_features(model, monkeypatch, one, two)
    found = counterfactual(model, image(1), image(2), target)
    assert found.swaps[0] == (int(own.argmin()), int(other.argmax()))
    assert found.grid == (3, 3) and found.distractor_grid == (2, 4)
    margins = found.logits[:, target] - found.logits[:, 1 - target]
    ranked = zip(own.sort().values, other.sort(descending=True).values, strict=False)
    gains = torch.tensor([(good - bad).item() for bad, good in ranked])
    steps = len(found.swaps)
    torch.testing.assert_close(margins[1:], margins[0] + gains[:steps].cumsum(0) / 9, rtol=1e-4, atol=1e-4)
    assert found.has_flipped == bool(margins[-1] > 0) and (margins[:-1] <= 0).all()


def test_fewest_swaps_of_a_linear_head_by_trying_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    model = create_model("test_resnet", num_classes=2).eval()
    one, two = torch.rand(1, model.num_features, 2, 2), torch.rand(1, model.num_features, 2, 2)
    with torch.no_grad():
        model.head.get_parameter("classifier.weight").normal_()
        target = int(model.forward_head(one, None)[0].logits.argmin())
        model.head.get_parameter("classifier.bias")[target] += 0.2
    with_features(model, monkeypatch, one, two)
    found = counterfactual(model, image(1), image(2), target)

    def flips(pairs: tuple[tuple[int, int], ...]) -> bool:
        cells = one.flatten(2).clone()
        for own, other in pairs:
            cells[..., own] = two.flatten(2)[..., other]
        with torch.no_grad():
            return bool(model.forward_head(cells.unflatten(2, (2, 2)), None)[0].logits.argmax() == target)

    fewest = next(
        (
            count
            for count in range(5)
            for owns in itertools.combinations(range(4), count)
            for others in itertools.permutations(range(4), count)
            if flips(tuple(zip(owns, others, strict=True)))
        ),
        None,
    )
    assert found.edits == fewest


@pytest.mark.parametrize("head", ["cam", "gated_attention", "protopnet", BLACK_BOX])
def test_an_image_is_no_distractor_of_itself_and_another_is_reached(head: str) -> None:
    model = made(head).train()
    with torch.no_grad():
        logits = [model.eval()(image(seed), explain=0).logits[0] for seed in (1, 2)]
    model.train()
    other = int(logits[0].argsort()[-2])
    alike = counterfactual(model, image(1), image(1), other)
    if head in ("cam", BLACK_BOX):  # a mean forgets where cells stood; all of its own cells change nothing in the end
        assert not alike.has_flipped or len(alike.swaps) < alike.grid[0] * alike.grid[1]
        torch.testing.assert_close(alike.logits[0], logits[0], rtol=1e-4, atol=1e-5)
    unreachable = counterfactual(model, image(1), image(2), int(logits[1].argmin()))
    whole = unreachable.grid[0] * unreachable.grid[1]
    if head in ("cam", BLACK_BOX) and not unreachable.has_flipped:
        assert len(unreachable.swaps) == whole and unreachable.edits is None
        torch.testing.assert_close(unreachable.logits[-1], logits[1], rtol=1e-3, atol=1e-4)
    assert model.training, "as it was found"
    assert counterfactual(model, image(1), image(2), int(logits[0].argmax())).edits == 0


def test_chunks_do_not_count() -> None:
    model = made()
    target = 2
    whole, small = (counterfactual(model, image(1, 96), image(2, 128), target, chunk=chunk) for chunk in (256, 3))
    assert whole.swaps == small.swaps and whole.grid == (3, 3) and whole.distractor_grid == (4, 4)


def test_refusals() -> None:
    with pytest.raises(InputError, match="the head 'multiscale_cam' looks at several"):
        counterfactual(made("multiscale_cam"), image(1), image(2), 0)
    with pytest.raises(InputError, match="class 7 is not among 0 to 4"):
        counterfactual(made(), image(1), image(2), 7)


def test_a_critter_is_turned_into_another_s_class(tmp_path: Path) -> None:
    model = load_pretrained("cam_test_byobnet.s64_critters")
    data = create_dataset("critters", "test", count=8)
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        Image.fromarray(data[number]["image"].permute(1, 2, 0).numpy()).save(path)
    told = show_counterfactual(model, *paths, tmp_path / "out")
    assert told.before == data.classes[data[0]["label"]] and told.target == data.classes[data[1]["label"]]
    assert told.found.edits and told.found.edits < 32 and Image.open(told.picture).width > 800
    with pytest.raises(InputError, match="0.png is .* already"):
        show_counterfactual(model, paths[0], paths[0], tmp_path)
