"""What would have to be different: cells of another image's features, put in place of the image's own until it flips.

Goyal et al., "Counterfactual Visual Explanations", ICML 2019: the greedy search, all pairs of cells at each step. The
backbone runs once for each image, the head alone on every candidate.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.folder import read_image
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .explaining import class_number
from .pictures import displayed, save_figure, swaps_figure


class Counterfactual(NamedTuple):
    """The swaps that turned one image's prediction into another class."""

    swaps: list[tuple[int, int]]  # cell of the image, cell of the distractor; numbered row by row, first swap first
    has_flipped: bool  # whether the target became the highest class
    logits: Tensor  # (swaps + 1) c: before, and after each swap
    grid: tuple[int, int]  # rows and columns of the image's cells
    distractor_grid: tuple[int, int]

    @property
    def edits(self) -> int | None:
        """How many swaps it took, fewer is better; None where the target never became the highest."""
        return len(self.swaps) if self.has_flipped else None


@torch.no_grad()
def counterfactual(
    model: ImageClassifier, image: Tensor, distractor: Tensor, target: int, *, chunk: int = 256
) -> Counterfactual:
    """Swap cells of `distractor`'s features into `image`'s until `target` is the highest class.

    At each step the pair of cells that raises the target's log-probability most, of all that were not used before; so
    there are at most as many steps as cells. The model is left as it was found.

    Args:
        model: Any whose head looks at one feature map, a black box as well.
        image: `1 c h w`, normalised.
        distractor: `1 c h w`, of any size; an image of the class `target`, for the answer to mean something.
        target: A class number.
        chunk: Candidates a call of the head.

    Raises:
        InputError: A head that looks at several stages, or a class that is not there.
    """
    if len(model.backbone.stages) > 1:
        raise InputError(f"cells of one feature map are swapped, but the head {model.config.head!r} looks at several")
    if not 0 <= target < model.num_classes:
        raise InputError(f"class {target} is not among 0 to {model.num_classes - 1}")
    with eval_mode(model):
        features, others = model.backbone(image), model.backbone(distractor)
        rows, columns = features.shape[-2:]
        current, source = features.flatten(2), others.flatten(2)  # 1 d cells
        free, offered = list(range(current.shape[-1])), list(range(source.shape[-1]))

        def logits(cells: Tensor) -> Tensor:
            return model.forward_head(cells.unflatten(2, (rows, columns)), None)[0].logits.float()

        steps, swaps = [logits(current)[0]], []
        while steps[-1].argmax() != target and free and offered:
            pairs = torch.cartesian_prod(torch.tensor(free), torch.tensor(offered))
            scores = [
                logits(_swapped(current, source, some)).log_softmax(1)[:, target].cpu() for some in pairs.split(chunk)
            ]
            best = pairs[torch.cat(scores).argmax()][None]
            current = _swapped(current, source, best)
            steps.append(logits(current)[0])
            own, other = best[0].tolist()
            swaps.append((own, other))
            free.remove(own)
            offered.remove(other)
    flipped = bool(steps[-1].argmax() == target)
    return Counterfactual(swaps, flipped, torch.stack(steps), (rows, columns), (others.shape[-2], others.shape[-1]))


def _swapped(current: Tensor, source: Tensor, pairs: Tensor) -> Tensor:
    """`n d cells`: the features `1 d cells` with one cell replaced, for each of the pairs (n 2)."""
    changed = current.repeat(len(pairs), 1, 1)
    changed[torch.arange(len(pairs)), :, pairs[:, 0]] = source[0, :, pairs[:, 1]].T
    return changed


class ShownCounterfactual(NamedTuple):
    """A photograph's counterfactual, and the picture that shows it."""

    picture: Path
    before: str  # the photograph's class
    target: str
    found: Counterfactual


@torch.no_grad()
def show_counterfactual(
    model: ImageClassifier, image: Path, distractor: Path, folder: Path, target: str | None = None
) -> ShownCounterfactual:
    """Write a picture of the cells that turn `image` into the class `target` (default: that of `distractor`).

    Raises:
        InputError: A file that is no image, a class that the image has already, and what `counterfactual` refuses.
    """
    device = next(model.parameters()).device
    batches = [model.preprocess(read_image(path))[None].to(device) for path in (image, distractor)]
    with eval_mode(model):
        own, other = (int(model(batch, explain=0).logits.argmax()) for batch in batches)
    number = other if target is None else class_number(target, model.class_names)
    names = model.class_names
    if number == own:
        raise InputError(f"{image} is {names[own]} already: a distractor of another class is needed")
    found = counterfactual(model, batches[0], batches[1], number)
    shown, source = (displayed(batch[0], model.config.preprocessing) for batch in batches)
    told = f"{found.edits} swaps" if found.has_flipped else "never"
    titles = (f"{names[own]} → {names[number]}: {told}", f"cells from here ({names[other]})")
    path = folder / f"{image.stem}_{distractor.stem}.png"
    save_figure(swaps_figure(shown, source, titles, found.swaps, (found.grid, found.distractor_grid)), path)
    return ShownCounterfactual(path, names[own], names[number], found)
