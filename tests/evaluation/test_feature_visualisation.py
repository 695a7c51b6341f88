"""Feature visualisation: colours and frequencies, units that answer, and a model that is left as it was."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from glasszoo import create_model, load_pretrained
from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.evaluation.feature_visualisation import Unit, stage_features, visualise
from glasszoo.evaluation.image_parametrisation import colour_root, first_spectrum, jittered, picture_of
from glasszoo.models import BLACK_BOX, ImageClassifier

SIZE = (32, 32)


def made(head: str = "cam") -> ImageClassifier:
    torch.manual_seed(0)
    return create_model("test_resnet", head=head, num_classes=5).eval()


def high_frequency_share(pictures: Tensor) -> float:
    """Of the variance, what lies above an eighth of a cycle a pixel."""
    power = torch.fft.rfft2(pictures - pictures.mean((2, 3), keepdim=True)).abs().square()
    height, width = pictures.shape[-2:]
    frequency = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    return (power[..., frequency > 0.125].sum() / power.sum()).item()


def test_colours_of_uncorrelated_noise_are_imagenet_s() -> None:
    """The covariance is the principal components' own, up to the scale."""
    root = colour_root()
    values, vectors = torch.linalg.eigh(root @ root.T)
    expected = torch.tensor([0.0045, 0.0188, 0.2175])
    torch.testing.assert_close(values / values.sum(), expected / expected.sum(), rtol=0.02, atol=1e-4)
    assert vectors[:, -1].abs().min() > 0.5, "most of it is brightness"
    assert root.norm(dim=0).max() == pytest.approx(1)


def test_a_spectrum_is_a_picture_whose_power_falls_with_frequency() -> None:
    white = torch.randn(8, 3, 64, 33, 2, generator=torch.Generator().manual_seed(0))
    pictures = picture_of(white, (64, 64))
    assert pictures.shape == (8, 3, 64, 64) and pictures.min() > 0 and pictures.max() < 1
    power = torch.fft.rfft2(pictures.logit()).abs().square().mean((0, 1))
    assert power[2, 0] / power[16, 0] == pytest.approx(64, rel=0.7), "1 / f²"
    flat = picture_of(torch.zeros(1, 3, 32, 17, 2), SIZE)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.5))
    odd = picture_of(first_spectrum(0, (31, 45))[None], (31, 45))
    assert odd.shape == (1, 3, 31, 45)


def test_transformations_are_small_and_by_picture() -> None:
    pictures = torch.rand(2, 3, 32, 32)
    both = jittered(pictures, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    alone = jittered(pictures[1:], [torch.Generator().manual_seed(2)])
    torch.testing.assert_close(both[1:], alone)
    assert not torch.allclose(both[0], pictures[0], atol=0.1)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    moved = jittered(ramp, [torch.Generator().manual_seed(3)])
    assert (moved - ramp).abs().mean() < 0.2


class Redness(nn.Module):
    """Features that are how red each pixel is; its channel 1 how blue."""

    def forward(self, images: Tensor) -> Tensor:
        red, green, blue = images.unbind(1)
        return torch.stack([red - (green + blue) / 2, blue - (red + green) / 2], 1)


def test_a_channel_that_looks_for_red_is_drawn_red(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(BLACK_BOX)
    monkeypatch.setattr(model.backbone, "forward", Redness().forward)
    monkeypatch.setattr(model.backbone, "classify", lambda features: features.mean((2, 3)))
    found = visualise(model, [Unit("channel", 0), Unit("channel", 1)], size=32, steps=80, progress=False)
    red, green, blue = found.pictures.mean((2, 3)).unbind(1)
    assert red[0] > max(green[0], blue[0]) + 0.15 and blue[1] > max(red[1], green[1]) + 0.15
    assert (found.answers[-1] > found.answers[0] + 0.3).all()


def test_a_class_answers_more_than_to_any_photograph_and_pictures_are_no_noise() -> None:
    model = load_pretrained("cam_test_byobnet.s64_critters").eval()
    data = create_dataset("critters", "test", count=64)
    photographs = torch.stack([torch.as_tensor(model.preprocess(data[number]["image"])) for number in range(64)])
    with torch.no_grad():
        highest = model(photographs, explain=0).logits.amax(0)
    units = [Unit("class", 0), Unit("class", 5)]
    found = visualise(model, units, size=64, steps=80, progress=False)
    assert (found.answers[-1] > highest[[0, 5]]).all()
    pixels = torch.full((2, 3, 64, 64), 0.5).requires_grad_()
    optimizer = torch.optim.Adam([pixels], 0.05)
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (model.config.preprocessing.mean, model.config.preprocessing.std)
    )
    for _ in range(120):
        optimizer.zero_grad()
        (-model((pixels.sigmoid() - mean) / std, explain=0).logits[[0, 1], [0, 5]].sum()).backward()
        optimizer.step()
    model.zero_grad()
    assert high_frequency_share(found.pictures) < 0.5 * high_frequency_share(pixels.sigmoid().detach())


@pytest.mark.parametrize(
    ("head", "unit"),
    [("cam", Unit("channel", 3, stage=1)), ("protopnet", Unit("part", 7)), ("parts", Unit("part", 1)),
     ("multiscale_cam", Unit("channel", 2)), (BLACK_BOX, Unit("class", 1))],
)  # fmt: skip
def test_units_answer_more_the_model_stays_and_the_batch_does_not_count(head: str, unit: Unit) -> None:
    model = made(head).train()
    model(torch.randn(2, 3, 64, 64)).logits.sum().backward()
    state = [value.clone() for value in model.state_dict().values()]
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    alone = visualise(model, [unit], size=64, steps=8, progress=False)
    together = visualise(model, [Unit("class", 0), unit], size=64, steps=8, progress=False)
    assert (together.pictures[1] - alone.pictures[0]).abs().mean() < 1e-3, "but for rounding, which steps make larger"
    assert alone.answers[-3:].mean() > alone.answers[0]
    assert torch.equal(visualise(model, [unit], size=64, steps=8, progress=False).pictures, alone.pictures)
    other = visualise(model, [unit], size=64, steps=8, seed=1, progress=False)
    assert not torch.allclose(other.pictures, alone.pictures, atol=0.05)
    assert model.training and all(torch.equal(*pair) for pair in zip(state, model.state_dict().values(), strict=True))
    for before, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.requires_grad
        assert (before is None) == (parameter.grad is None) and (before is None or torch.equal(before, parameter.grad))


def test_stages_are_counted_from_the_first() -> None:
    model = made()
    with torch.no_grad():
        stages = stage_features(model, torch.randn(1, 3, 64, 64))
    sides = [maps.shape[-1] for maps in stages.values()]
    assert list(stages) == list(range(len(sides))) and sides == sorted(sides, reverse=True)
    with pytest.raises(InputError, match=f"test_resnet has stages 0 to {len(sides) - 1}, not 9"):
        stage_features(model, torch.randn(1, 3, 64, 64), [9])


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [(Unit("class", 5), "class 5: cam on test_resnet has 5 of these"),
     (Unit("part", 0), "part 0: cam on test_resnet has 0 of these"),
     (Unit("channel", -1), "channel -1: cam on test_resnet has")],
)  # fmt: skip
def test_units_that_are_not_there(unit: Unit, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        visualise(made(), [unit], size=32, steps=1, progress=False)


def test_bad_sizes_and_channels() -> None:
    with pytest.raises(InputError, match="at least 16 pixels and 1 step are needed, got 8 and 3"):
        visualise(made(), [Unit("class", 0)], size=8, steps=3)
    grey = create_model("test_resnet", num_classes=5, in_chans=1)
    with pytest.raises(InputError, match="pictures have three channels, but the model takes 1"):
        visualise(grey, [Unit("class", 0)])


def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    image = create_dataset("critters", "test", count=1)[0]["image"]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(photo)
    asked = ["visualise", "--model", "cbam_test_byobnet.s64_critters", "--out", str(tmp_path / "out")]
    units = ["--class", "horned-fan", "--channel", "4", "--part", "0", "--photo", str(photo)]
    assert main([*asked, *units, "--size", "32", "--steps", "4"]) == 0
    printed = capsys.readouterr().out
    assert "horned-fan: " in printed and "units.png" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "class_0.png", "channel_4.png", "part_0.png", "units.png", "photo_layers.png", "photo_gradients.png",
    }  # fmt: skip
    assert all(not math.isnan(Image.open(tmp_path / "out" / name).width) for name in names)
    assert main(asked) == 2
    assert "nothing to draw: give --class, --channel, --part or --photo" in capsys.readouterr().err
