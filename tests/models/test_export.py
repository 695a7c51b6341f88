"""Exported programs compute what the model does, on images of other numbers and sizes than they were traced with."""

import copy
import json
import math
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import torch
from torch import Tensor

import glasszoo
from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.models import BLACK_BOX, ImageClassifier, Preprocessing, export_model, save_pretrained

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"
BACKBONES = ("test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050")
# A head of every family, and more of them on one network; benchmarks/export.py has every head on every network.
FAMILIES = ("cam", "gated_attention", "concepts", "protopnet")
MODELS = [
    *product(BACKBONES, FAMILIES),
    *((BACKBONES[0], head) for head in ("lse", "mgproto", "multiscale_cam", "topk")),
]


def made(backbone: str = "test_resnet", head: str = "cam", **options: Any) -> ImageClassifier:
    """With random weights in the head, since untrained logits are too small to tell a right program by."""
    torch.manual_seed(0)
    model = glasszoo.create_model(backbone, head=head, num_classes=7, class_names=list("abcdefg"), **options)
    for parameter in model.get_classifier().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def run_onnx(path: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(names, {"images": images.numpy()})), strict=True))


def run_torch(path: Path, images: Tensor) -> dict[str, Tensor]:
    return torch.export.load(path).module()(images)


@pytest.mark.parametrize(("backbone", "head"), MODELS)
def test_onnxruntime_agrees_with_torch(backbone: str, head: str, tmp_path: Path) -> None:
    model = made(backbone, head)
    done = export_model(model, tmp_path / "model.onnx", top=2)
    assert done.gap <= 1e-4 and len(done.shapes) == 3
    for shape in ((1, 3, 64, 200), (5, 3, 128, 96)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        found = run_onnx(done.path, images)
        with torch.no_grad():
            expected = {name: tensor for name, tensor in model(images, explain=2)._asdict().items() if tensor.numel()}
        assert found.keys() == expected.keys() == set(done.outputs)
        for name, tensor in expected.items():
            assert found[name].shape == tensor.shape
            assert (found[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max(), name


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("test_resnet", "gem"),
        ("test_resnet", BLACK_BOX),
        ("test_convnext", "protopnet"),  # channels-last features, see plain_layouts.py
        ("tf_mobilenetv3_small_minimal_100", "cam"),
    ],
)
def test_torch_runs_what_torch_exported(backbone: str, head: str, tmp_path: Path) -> None:
    """One image with odd sides, where TensorFlow's padding (`tf_`) differs."""
    model = made(backbone, head)
    done = export_model(model, tmp_path / "model.pt2", "torch-export", top="all")
    images = torch.randn(1, 3, 75, 131)
    found = run_torch(done.path, images)
    assert set(found) == set(done.outputs) and ("maps" in found) == (head != BLACK_BOX)
    with torch.no_grad():
        expected = model(images, explain="all")._asdict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])


def test_the_model_stays_as_it_is_whatever_it_is(tmp_path: Path) -> None:
    model = made().double().train()
    before = copy.deepcopy(model.state_dict())
    done = export_model(model, tmp_path / "model.pt2", "torch-export")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float64}
    images = torch.randn(2, 3, 96, 96)
    found = run_torch(done.path, images)["logits"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.eval()(images.double()).logits.detach().float(), atol=1e-4, rtol=1e-4)


def test_what_goes_along_is_the_same_in_both_formats(tmp_path: Path) -> None:
    preprocessing = Preprocessing((3, 64, 96), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.5)
    model = made(preprocessing=preprocessing)
    for path, format in ((tmp_path / "model.onnx", "onnx"), (tmp_path / "model.pt2", "torch-export")):
        export_model(model, path, format, preprocess_inside=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    extra = {"glasszoo.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    told = json.loads(extra["glasszoo.json"])
    assert told == json.loads(session.get_modelmeta().custom_metadata_map["glasszoo"])
    assert Preprocessing(**told["preprocessing"]) == preprocessing
    assert told["glasszoo"] == glasszoo.__version__
    assert told["class_names"] == list("abcdefg") and told["normalises"] is True
    assert (told["architecture"], told["head"], told["contract"]) == ("test_resnet", "cam", "linear")
    for path in tmp_path.iterdir():  # torch notes which line of which file made a node
        assert str(Path(glasszoo.__file__).parent).encode() not in path.read_bytes()

    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    expected = model((images / 255 - mean) / std).logits.detach()
    torch.testing.assert_close(run_onnx(tmp_path / "model.onnx", images)["logits"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run_torch(tmp_path / "model.pt2", images)["logits"], expected)


def test_the_documents_consumer_runs_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command writes the file, and the ten lines read it."""
    model = made(preprocessing=Preprocessing((3, 160, 160), crop_pct=1.0))
    save_pretrained(model, tmp_path / "checkpoint")
    arguments = ["--out", str(tmp_path / "model.onnx"), "--preprocess-inside"]
    assert main(["export", f"local-dir:{tmp_path / 'checkpoint'}", *arguments]) == 0
    assert "model.onnx: logits, classes, maps, offset\noff by at most" in capsys.readouterr().out
    image = numpy.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=numpy.uint8)
    numpy.save(tmp_path / "image.npy", image)

    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S) if "onnx" in block)
    assert len([line for line in code.splitlines() if line]) == 10
    forbidden = "import sys\nfor name in ('torch', 'timm', 'glasszoo', 'PIL'): sys.modules[name] = None\n"
    done = subprocess.run([sys.executable, "-c", forbidden + code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        out = model(model.preprocess(torch.from_numpy(image).permute(2, 0, 1))[None])
    row, column = divmod(int(out.maps[0, 0].argmax()), out.maps.shape[-1])
    said = done.stdout.splitlines()
    assert said[0] == f"{model.class_names[out.classes[0, 0]]} speaks loudest at cell {row} {column}"
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", said[1])]
    assert numbers == pytest.approx([out.logits.max().item()] * 2, rel=1e-3)


def test_a_program_that_knows_one_size_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch warns of nothing where Python's arithmetic freezes a size; the check finds out. What was there stays."""
    path = tmp_path / "model.onnx"
    path.write_text("before")
    monkeypatch.setattr(
        "glasszoo.heads.gem.log_num_cells", lambda features: math.log(features.shape[-2] * features.shape[-1])
    )
    with pytest.raises(InputError, match=r"off by .* of the largest logit on images of shape \(1, 3, 160, 160\)"):
        export_model(made(head="gem"), path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_network_that_torch_cannot_export_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    monkeypatch.setattr(type(model.head), "score", lambda self, features: features.sum().item() > 0 or 1 / 0)
    with pytest.raises(InputError, match="torch cannot export 'cam' on test_resnet: "):
        export_model(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": "onxx"}, "unknown export format 'onxx': did you mean 'onnx'?"),
        ({"top": 0}, "top=0: the model has 7 classes, so 1 to 7 or 'all'"),
        ({"top": 8}, "top=8: the model has 7 classes"),
    ],
)
def test_wrong_options(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        export_model(made(), tmp_path / "model.onnx", **options)


def test_weights_too_large_for_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    monkeypatch.setattr("glasszoo.models.export._ONNX_BYTES", 4 * sum(map(torch.numel, model.state_dict().values())))
    with pytest.raises(InputError, match="at most 2 GB in one file, and these weights are more"):
        export_model(model, tmp_path / "model.onnx")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glasszoo.models.export.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(InputError, match=r"onnx needs onnxscript: pip install 'glasszoo\[export\]'"):
        export_model(made(), tmp_path / "model.onnx")
