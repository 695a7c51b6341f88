"""The gallery: every kept prototype with where it came from, and points that add up to the logit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.loading import Loader
from glasszoo.evaluation import publish
from glasszoo.evaluation.gallery import reasoning, receptive_field, thumbnail, write_gallery
from glasszoo.models import ImageClassifier

OPTIONS: dict[str, dict[str, Any]] = {
    "protopnet": {"per_class": 2, "dim": 8},
    "st_protopnet": {"per_branch": 1, "dim": 8, "upsampling": 2},
    "mgproto": {"per_class": 3, "kept": 2, "dim": 8},
    "pipnet": {"num_prototypes": 16, "threshold": 0.01},
}


def data(split: str) -> Any:
    return create_dataset("critters", split, size=64, count=24)


def projected(head: str) -> ImageClassifier:
    torch.manual_seed(0)
    model = glasszoo.create_model("test_resnet", head=head, num_classes=8, head_kwargs=OPTIONS[head]).eval()
    model.project(Loader(data("train"), model.preprocess, 8))  # type: ignore[operator]
    return model


@pytest.mark.parametrize("head", OPTIONS)
def test_points_add_up_to_what_is_shown(head: str) -> None:
    model = projected(head)
    image = model.preprocess(data("test")[0]["image"])
    out = model(image[None])
    for rows in (2, 100):
        found = reasoning(model, image, rows)
        assert found.label == out.classes[0, 0] and len(found.rows) <= rows
        total = model.contract.explained_quantity(out.logits)[0, found.label].item()
        assert sum(row.points for row in found.rows) + found.others == pytest.approx(total, abs=1e-6)
        for row in found.rows:
            assert row.similarity * row.weight == pytest.approx(row.points, abs=1e-6)
            assert out.maps[0, 0, row.cell[0], row.cell[1]] != 0
    assert found.others == pytest.approx(0, abs=1e-6), "all prototypes are shown"


def test_boxes_are_those_of_the_finer_grid() -> None:
    """Cells of a map twice as fine lie a quarter of a cell to either side of the middle of the coarse one."""
    coarse, fine = projected("protopnet"), projected("st_protopnet")
    assert coarse.grid is not None
    middle = np.mean([receptive_field(fine, row, column) for row in (2, 3) for column in (4, 5)], axis=0)
    assert middle == pytest.approx(receptive_field(coarse, 1, 2))
    entry = fine.provenance[0]
    assert receptive_field(fine, *entry["cell"]) == pytest.approx(entry["box"])


@pytest.mark.parametrize("head", ["protopnet", "pipnet"])
def test_the_page_shows_every_kept_prototype(tmp_path: Path, head: str) -> None:
    model = projected(head)
    model.head.is_kept[3] = False  # type: ignore[union-attr]
    photo = tmp_path / "a <photo>.png"
    to_pil_image(data("test")[1]["image"]).save(photo)
    write_gallery(tmp_path / "gallery.html", model, data("train"), data("test"), [photo], nearest=2)
    page = (tmp_path / "gallery.html").read_text()
    for number in range(16):
        assert (f'id="prototype-{number}"' in page) == (number != 3)
    assert "1 prototypes were pruned" in page and "a &lt;photo&gt;.png" in page and "looks like that" in page
    sources = {entry["prototype"]: entry["image"] for entry in model.provenance}
    assert all(f"<br>{image}<" in page for number, image in sources.items() if number != 3)
    assert "http" not in page, "self-contained"


def test_what_cannot_be_shown_is_said() -> None:
    plain = glasszoo.create_model("test_resnet", head="cam", num_classes=8)
    with pytest.raises(InputError, match="'cam' has no prototypes"):
        write_gallery(Path("x"), plain, data("train"), data("test"))
    fresh = glasszoo.create_model("test_resnet", head="protopnet", num_classes=8)
    with pytest.raises(InputError, match="were not projected"):
        write_gallery(Path("x"), fresh, data("train"), data("test"))
    other = projected("protopnet")
    with pytest.raises(InputError, match="which the data set does not hold"):
        write_gallery(Path("x"), other, data("test"), data("test"))


def test_a_frame_is_cut_at_the_edge() -> None:
    import base64
    import io

    from PIL import Image

    grey = np.full((60, 120, 3), 128, np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(thumbnail(grey, (-500, 20, 60, 500))))).convert("RGB"))
    assert shown.shape == (66, 132, 3)
    is_yellow = (shown[..., 0] > 180) & (shown[..., 2] < 90)
    assert is_yellow[:, 0].sum() > 30 and is_yellow[-1].sum() > 50 and not is_yellow[:15].any()
    assert is_yellow[57:66, 1:8].sum() > 20, "the middle lies far outside, at the lower left"
    plain = np.asarray(Image.open(io.BytesIO(base64.b64decode(thumbnail(grey)))).convert("RGB"))
    assert (abs(plain.astype(int) - 128) < 3).all()


def test_what_is_withheld_is_nowhere(tmp_path: Path) -> None:
    """No picture, and in no file an id, a cell or a box; but the same model."""
    model = projected("protopnet")
    publish(model, tmp_path / "private", prototypes="withheld")
    files = sorted(path.name for path in (tmp_path / "private").rglob("*"))
    assert files == ["README.md", "card.json", "config.json", "model.safetensors", "prototypes.json"]
    ids = {data("train")[number]["id"] for number in range(24)}
    assert {entry["image"] for entry in model.provenance} <= ids
    for path in (tmp_path / "private").iterdir():
        content = path.read_bytes()
        assert not any(word.encode() in content for word in [*ids, '"cell"', '"box"', '"image"', "proximity"]), path
    again = glasszoo.load_pretrained(f"local-dir:{tmp_path / 'private'}")
    image = model.preprocess(data("test")[0]["image"])[None]
    assert torch.equal(again(image).logits, model(image).logits)
    with pytest.raises(InputError, match="sources are withheld"):
        write_gallery(tmp_path / "x.html", again, data("train"), data("test"))


def test_what_is_shown_is_there(tmp_path: Path) -> None:
    model = projected("protopnet")
    publish(model, tmp_path / "public", data("train"))
    pictures = {int(path.stem) for path in (tmp_path / "public" / "prototypes").iterdir()}
    assert pictures == {entry["prototype"] for entry in model.provenance}
    assert glasszoo.load_pretrained(f"local-dir:{tmp_path / 'public'}").provenance == model.provenance
    with pytest.raises(InputError, match="is not empty"):
        publish(model, tmp_path / "public", data("train"))
    with pytest.raises(InputError, match="give the training images"):
        publish(model, tmp_path / "other")
    with pytest.raises(InputError, match="'shown' or 'withheld' expected"):
        publish(model, tmp_path / "other", prototypes="hidden")  # type: ignore[arg-type]
