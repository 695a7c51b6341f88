"""What prototypes stand for, as one self-contained page: where each came from, what else looks like it, what it counts.

And for single images "this looks like that": similarity × weight = points, which add up to the logit.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageDraw
from torch import Tensor

from ..common.errors import InputError
from ..common.files import write_text
from ..data.folder import read_image
from ..data.loading import Loader
from ..data.samples import ImageDataset, Unreadable
from ..heads import Contract
from ..heads.nearest import Patch, nearest_patches
from ..models import Grid, ImageClassifier
from ..models.classifier import prototype_head
from .benchmark import check_classes
from .pictures import displayed

_SIDE = 132  # pixels of a thumbnail's longer side
_ROWS = 8  # prototypes shown for an image, by how much they count


class Row(NamedTuple):
    """One prototype's part in a logit."""

    prototype: int
    similarity: float
    weight: float
    points: float  # similarity × weight
    cell: tuple[int, int]  # row, column: where it was found


class Reasoning(NamedTuple):
    """Why an image got its logit: the prototypes that count most, and what all others add; together the total."""

    label: int
    total: float  # the logit, or the probability where the contract says so
    rows: list[Row]
    others: float


@torch.no_grad()
def reasoning(model: ImageClassifier, image: Tensor, rows: int = _ROWS) -> Reasoning:
    """Why a preprocessed `image` (c h w) is taken for the class that the model predicts."""
    head = prototype_head(model)
    model.eval()
    state = head.score(model.backbone(image[None]))
    label = int(state.logits.argmax())
    weight, activations = head.weight[label], state.activations[0]
    points = weight * activations
    width = state.parts.shape[-1]
    chosen = points.abs().argsort(descending=True, stable=True)[:rows].tolist()
    shown = [
        Row(
            number,
            activations[number].item(),
            weight[number].item(),
            points[number].item(),
            divmod(int(state.places[0, number]), width),
        )
        for number in chosen
        if points[number] != 0
    ]
    total = model.contract.explained_quantity(state.logits)[0, label].item()
    return Reasoning(label, total, shown, total - sum(row.points for row in shown))


def receptive_field(model: ImageClassifier, row: int, column: int) -> tuple[float, float, float, float] | None:
    """What the cell of a similarity map sees: x1, y1, x2, y2 in pixels of the model's input; None where not known."""
    if model.grid is None:
        return None
    return model.grid.box(row, column, prototype_head(model).scale)


def write_gallery(
    path: Path,
    model: ImageClassifier,
    training: ImageDataset,
    test: ImageDataset,
    images: Sequence[Path] = (),
    nearest: int = 3,
    batch_size: int = 32,
) -> None:
    """Write the page to `path`.

    Args:
        path: The HTML file.
        model: A model whose prototypes were projected.
        training: The images that prototypes came from, by their ids.
        test: Other images, of which the nearest patches are shown as well.
        images: Image files to explain by prototypes.
        nearest: How many patches of each set.
        batch_size: Images at once.

    Raises:
        InputError: No prototypes, or their source images are withheld or not among `training`, whose classes have to be
            the model's.
    """
    head = prototype_head(model)
    check_classes(model, training)
    sources = {entry["prototype"]: entry for entry in model.provenance}
    if not sources or any("image" not in entry for entry in model.provenance):
        raise InputError("the model's prototypes were not projected, or their sources are withheld: nothing to show")
    pages = {name: Pictures(dataset, model) for name, dataset in (("training", training), ("test", test))}
    names = pages["training"].class_names
    search = head.search(own_class=False, count=nearest)
    found = {
        name: nearest_patches(Loader(dataset, model.preprocess, batch_size, on_error="skip"), model, search)
        for name, dataset in (("training", training), ("test", test))
    }
    kept = head.is_kept.nonzero()[:, 0].tolist()
    prototypes = [
        {
            "number": number,
            "owner": _owner(head.belongs[:, number].nonzero()[:, 0].tolist(), names),
            "source": pages["training"].of_entry(sources[number]) if number in sources else "",
            "image": sources[number]["image"] if number in sources else "not projected",
            "near": {name: [pages[name].of_patch(patch) for patch in near[number]] for name, near in found.items()},
            "weights": _weights(head.weight[:, number], names),
        }
        for number in kept
    ]
    loader = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0], "."), autoescape=True, undefined=StrictUndefined
    )
    page = loader.get_template("gallery.html").render(
        title=f"Prototypes of {model.config.head} · {model.config.architecture}",
        field=_told(model.grid),
        pruned=len(head.is_kept) - len(kept),
        prototypes=prototypes,
        reasons=[_reason(model, file, pages["training"], sources) for file in images],
    )
    write_text(path, page)


def _reason(
    model: ImageClassifier, file: Path, pictures: "Pictures", sources: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    image = model.preprocess(read_image(file))
    found = reasoning(model, image.to(next(model.parameters()).device))
    shown = displayed(image, model.config.preprocessing)
    return {
        "name": file.name,
        "picture": thumbnail(shown),
        "label": pictures.class_names[found.label],
        "total": found.total,
        "quantity": "density" if model.contract is Contract.PROBABILITY else "logit",
        "others": found.others,
        "rows": [
            {
                **row._asdict(),
                "this": thumbnail(shown, receptive_field(model, *row.cell)),
                "that": pictures.of_entry(sources[row.prototype]) if row.prototype in sources else "",
            }
            for row in found.rows
        ],
    }


class Pictures:
    """Thumbnails of a data set's images as the model sees them, by id."""

    def __init__(self, dataset: ImageDataset, model: ImageClassifier) -> None:
        self._dataset, self._model = dataset, model
        self.class_names = model.config.class_names or dataset.classes
        self._shown: dict[str, np.ndarray] = {}
        self._places: dict[str, int] = {}

    def picture(self, image: str) -> np.ndarray:
        """The whole image of that id, `h w 3`."""
        if image not in self._shown:
            if not self._places:
                self._places = {identifier: place for place, identifier in enumerate(_ids(self._dataset))}
            if image not in self._places:
                raise InputError(f"a prototype came from image {image!r}, which the data set does not hold")
            sample = self._dataset[self._places[image]]
            if isinstance(sample, Unreadable):
                raise InputError(sample.reason)
            prepared = self._model.preprocess(sample["image"])
            self._shown[image] = displayed(prepared, self._model.config.preprocessing)
        return self._shown[image]

    def of_entry(self, entry: dict[str, Any]) -> str:
        """Of where a prototype came from."""
        return thumbnail(self.picture(entry["image"]), entry["box"])

    def of_patch(self, patch: Patch) -> dict[str, Any]:
        """Of a patch, with what it is."""
        box = receptive_field(self._model, patch.row, patch.column)
        label = self.class_names[patch.label]
        return {"picture": thumbnail(self.picture(patch.image), box), "label": label, "proximity": patch.proximity}


def _ids(dataset: ImageDataset) -> Iterable[str]:
    """Of all samples; read one by one where the data set does not know them."""
    if (known := getattr(dataset, "ids", None)) is not None:
        return known
    samples = (dataset[place] for place in range(len(dataset)))
    return (sample.id if isinstance(sample, Unreadable) else sample["id"] for sample in samples)


def thumbnail(picture: np.ndarray, box: Sequence[float] | None = None) -> str:
    """A picture `h w 3` as base64 JPEG, `framed`."""
    buffer = io.BytesIO()
    framed(picture, box).save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def framed(picture: np.ndarray, box: Sequence[float] | None = None) -> Image.Image:
    """A picture `h w 3`, small; with a receptive field's box (x1, y1, x2, y2): outlined, its centre marked.

    What of the box lies outside the image is cut off, and a centre there is moved in; a box that holds the whole image
    frames it.
    """
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    small = Image.fromarray(picture).resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    if box is not None:
        draw = ImageDraw.Draw(small)
        x1, y1, x2, y2 = (value * scale for value in box)
        corners = (max(x1, 0), max(y1, 0), min(x2, small.width - 1), min(y2, small.height - 1))
        draw.rectangle(corners, outline="#ffd400", width=2)
        x, y = min(max((x1 + x2) / 2, 4), small.width - 5), min(max((y1 + y2) / 2, 4), small.height - 5)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="#ffd400", outline="black")
    return small


def _owner(classes: Sequence[int], names: Sequence[str]) -> str:
    return names[classes[0]] if len(classes) == 1 else f"shared by {len(classes)} classes"


def _weights(weights: Tensor, names: Sequence[str], most: int = 3) -> list[tuple[str, float]]:
    """The classes that a prototype counts for most."""
    order = weights.abs().argsort(descending=True, stable=True)[:most].tolist()
    return [(names[number], weights[number].item()) for number in order if weights[number] != 0]


def _told(grid: Grid | None) -> str:
    if grid is None:
        return "The receptive field of this backbone's cells is not known."
    height, width = grid.receptive_field
    more = ", and some of every pixel by means over the whole image" if grid.sees_whole_image else ""
    return f"A cell sees {width} × {height} pixels of the model's input{more}."
