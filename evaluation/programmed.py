"""A classifier whose use of parts is set by hand, and critters painted so that it can see them: no training, no doubt.

Each of the five parts has a paint of its own, a corner of the colour cube. The classifier tells each pixel's paint by
one 1 × 1 convolution, and a logit is the sum of the painted pixels, weighted by part. So what every pixel and every
part is worth is known exactly, and metrics can be put to the test: do they prefer the truth?
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..common.errors import InputError
from ..data.critter_render import Rendering, render
from ..data.critter_rules import SLOTS
from ..data.critter_scenes import Scenes, Split, sample_scenes
from ..data.samples import Sample
from ..heads import create_head
from ..models import Backbone, Grid, InterpretableClassifier, ModelConfig, Preprocessing
from ..models.anatomy import Anatomy, Stage
from .part_truth import part_renders, shapley_values, subset_logits

SIZE = 64
PAINTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]], dtype=np.uint8) * 255  # a slot's each
_TOLERANCE = 0.25  # sum over the channels, each 0..1: so far from its paint a pixel counts for nothing
_AREAS = (0.093, 0.054, 0.036, 0.017, 0.014)  # of the image, that a part in each slot covers on average

# Logits of each class for a part of average size in each slot: strong and weak, shared and own, for and against.
WEIGHTS = (
    (8.0, 2.0, 0.0, 0.0, -4.0),
    (0.0, 8.0, 2.0, -4.0, 0.0),
    (-4.0, 0.0, 8.0, 2.0, 0.0),
    (0.0, -4.0, 0.0, 8.0, 2.0),
    (2.0, 0.0, -4.0, 0.0, 8.0),
)


def painted(drawn: Rendering) -> NDArray[np.uint8]:
    """The pictures `n h w 3`, each part in its paint."""
    pictures = drawn.images.copy()
    for slot, paint in enumerate(PAINTS):
        pictures[drawn.regions == 2 + slot] = paint
    return pictures


def programmed_classifier(weights: Sequence[Sequence[float]] = WEIGHTS) -> InterpretableClassifier:
    """The classifier: `weights` are what an average part in each slot adds to each class's logit, `c 5`.

    A whole model of ours, with the `cam` head at a stride of 1: its built-in map is the exact worth of every pixel.

    Raises:
        InputError: Not one weight a slot.
    """
    table = torch.tensor(weights, dtype=torch.float32)
    if table.ndim != 2 or table.shape[1] != len(SLOTS):
        raise InputError(f"weights of shape (classes, {len(SLOTS)}) expected, got {tuple(table.shape)}")
    preprocessing = Preprocessing((3, SIZE, SIZE), crop_pct=1.0)
    stage = Stage(len(SLOTS), 1, Grid(1.0, (0.5, 0.5), (1, 1)))
    backbone = Backbone(_PaintDetectors(preprocessing), Anatomy((stage,), (None,), False, ()))
    head = create_head("cam", len(SLOTS), len(table))
    head.fold(table / torch.tensor(_AREAS), None)
    names = tuple(f"class {number}" for number in range(len(table)))
    config = ModelConfig("programmed", len(table), class_names=names, preprocessing=preprocessing)
    return InterpretableClassifier(backbone, head, config).eval()


class PaintedCritters(Dataset[Sample]):
    """Painted critters, labelled by a programmed classifier; the mask has 255 on the parts that speak for the label.

    `size` is 64; ids and scenes are those of `Critters` of the same split and seed.
    """

    def __init__(self, model: InterpretableClassifier, count: int, *, split: Split = "test", seed: int = 0) -> None:
        self._model, self._split, self._seed = model, split, seed
        self.classes = model.class_names
        self.groups = torch.arange(count)
        self.labels = torch.zeros(count, dtype=torch.long)
        speaks = model.head.get_parameter("classifier.weight").detach().cpu() > 0  # c slot
        self._speaks = speaks.numpy()
        for some in torch.arange(count).split(64):
            images = self.images(some.tolist())
            with torch.no_grad():
                self.labels[some] = model(images.to(speaks.device), explain=0).logits.argmax(1).cpu()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """The samples of several indices, drawn at once."""
        drawn = render(self.scenes(indices), SIZE)
        pictures = torch.from_numpy(np.ascontiguousarray(painted(drawn).transpose(0, 3, 1, 2)))
        samples = []
        for place, number in enumerate(indices):
            label = int(self.labels[number])
            speaks = (drawn.parts[place] & self._speaks[label][:, None, None]).any(0)
            mask = np.where(speaks, 255, np.where(drawn.creature[place], 128, 0)).astype(np.uint8)
            boxes = torch.from_numpy(_box(speaks)).reshape(-1, 4)
            samples.append(
                Sample(
                    image=tv_tensors.Image(pictures[place]),
                    label=label,
                    id=f"{self._split}/{number}",
                    mask=tv_tensors.Mask(torch.from_numpy(mask)),
                    boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(SIZE, SIZE)),
                )
            )
        return samples

    def scenes(self, indices: Sequence[int]) -> Scenes:
        """The scenes behind the images."""
        return sample_scenes(indices, self._seed, split=self._split)

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images as the model takes them: `b c h w`."""
        pictures = painted(render(self.scenes(indices), SIZE)).transpose(0, 3, 1, 2)
        image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pictures)))
        prepared: Tensor = self._model.preprocess(image).as_subclass(Tensor)
        return prepared

    def parts(self, indices: Sequence[int]) -> Tensor:
        """Where each part is seen: `b slot h w` bool."""
        return torch.from_numpy(render(self.scenes(indices), SIZE).parts)

    def shapley(self, indices: Sequence[int], classes: Tensor) -> Tensor:
        """The exact worth of each part for the logit of `classes` (b), from all subsets: `b slot`."""
        renders = part_renders(self.scenes(indices), SIZE, self._model.preprocess, painted)

        def logits(images: Tensor, wanted: Tensor) -> Tensor:
            return self._model(images, explain=0).logits.gather(1, wanted[:, None])[:, 0]

        return shapley_values(subset_logits(logits, renders.to(classes.device), classes))


class _PaintDetectors(nn.Module):
    """How much each pixel has of each paint, `b 5 h w` in 0..1: 1 − (distance in colour) / tolerance, if above 0.

    At a corner of the cube the distance is linear, so that pixels in full paint have a gradient.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        paints = torch.from_numpy(PAINTS).float() / 255
        towards = 2 * paints - 1  # slot c
        self.paint = nn.Conv2d(3, len(SLOTS), 1)
        self.act = nn.ReLU()
        with torch.no_grad():
            self.paint.weight.copy_((towards * std / _TOLERANCE)[..., None, None])
            self.paint.get_parameter("bias").copy_(1 + ((towards * mean).sum(1) - paints.sum(1)) / _TOLERANCE)

    def forward_features(self, images: Tensor) -> Tensor:
        """As timm's models have it."""
        return self.act(self.paint(images))


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """XYXY of a mask, x2 and y2 exclusive; none of an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((0, 4), dtype=np.float32)
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=np.float32)
