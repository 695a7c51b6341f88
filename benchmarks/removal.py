"""Does a model look at the marked cause? Paint it over, and as much elsewhere, and see what the prediction loses.

    python benchmarks/removal.py local-dir:runs/coffee_cam/best DATA_FOLDER

On the test images with masks (255 the cause, 128 the rest of the object, 0 background), for the label's logit and the
accuracy: the image as it is; the cause, widened by 3 pixels, painted in the object's mean colour; the same shape turned
by 180 degrees, so mostly another place of the object; the background painted in its own mean colour. Below it, what the
energy pointing game can reach at the resolution of the model's maps: the score of the mask itself, averaged over cells.
"""

import sys

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.loading import Loader
from glasszoo.evaluation import energy_pointing_game
from glasszoo.evaluation.results import as_table
from glasszoo.models import ImageClassifier


def painted(images: Tensor, where: Tensor, source: Tensor) -> Tensor:
    """`images` (b c h w) with the pixels `where` (b h w) in the mean colour of the pixels `source` (b h w)."""
    share = source / source.sum((1, 2), keepdim=True).clamp(min=1)
    colour = (images * share[:, None]).sum((2, 3), keepdim=True)
    return torch.where(where[:, None], colour, images)


def variants(images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The image and its three painted versions."""
    cause, rest = masks == 255, masks == 128
    widened = max_pool2d(cause[:, None].float(), 7, stride=1, padding=3)[:, 0] > 0
    elsewhere = widened.flip((1, 2)) & ~widened
    background = ~(cause | rest)
    return {
        "as it is": images,
        "cause painted over": painted(images, widened, rest),
        "as much elsewhere": painted(images, elsewhere, rest),
        "background flattened": painted(images, background, background),
    }


@torch.inference_mode()
def removal(model: ImageClassifier, folder: str) -> tuple[list[list[str]], float]:
    """Rows of the table (the label's mean logit and the accuracy for each variant), and the energy within reach."""
    scores: dict[str, list[Tensor]] = {}
    reachable: list[Tensor] = []
    for batch in Loader(create_dataset(folder, "test"), model.preprocess, batch_size=32):
        chosen = (batch.masks == 255).flatten(1).any(1)
        labels, cause = batch.labels[chosen], batch.masks[chosen] == 255
        cells = model(batch.images[:1], explain=1).maps.shape[-2:]
        reachable.append(energy_pointing_game(adaptive_avg_pool2d(cause.float(), cells), cause)[0])
        for name, images in variants(batch.images[chosen], batch.masks[chosen]).items():
            logits = model(images, explain=0).logits
            own = logits.gather(1, labels[:, None])[:, 0]
            scores.setdefault(name, []).append(torch.stack([own, (logits.argmax(1) == labels).float()], 1))
    rows = [["image", "label's logit", "top-1", "images"]]
    for name, parts in scores.items():
        together = torch.cat(parts)
        logit, top1 = together.mean(0).tolist()
        rows.append([name, f"{logit:.2f}", f"{top1:.1%}", str(len(together))])
    return rows, torch.cat(reachable).mean().item()


if __name__ == "__main__":
    source, folder = sys.argv[1:]
    table, reachable = removal(glasszoo.load_pretrained(source), folder)
    print(f"{as_table(table)}\nenergy within reach: {reachable:.3f}")
