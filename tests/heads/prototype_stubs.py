"""What prototype heads are projected on in tests: batches of images, and a model whose features are its images."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from glasszoo.heads import Head
from glasszoo.models import Grid


class Images(NamedTuple):
    """A batch, as far as heads look at one."""

    images: Tensor
    labels: Tensor
    ids: list[str]


class Plain(nn.Module):
    """A model whose features are its images, and whose cells are squares of ten pixels."""

    grid = Grid(stride=10.0, centre=(5.0, 5.0), receptive_field=(30, 20))

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = nn.Identity(), head


def loader(images: int = 6, classes: int = 2, seed: int = 0) -> list[Images]:
    """Batches of two images of 5 × 3 × 4, a class each in turn."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Images(
            torch.randn(2, 5, 3, 4, generator=generator),
            torch.tensor([number % classes] * 2),
            [f"{number}a", f"{number}b"],
        )
        for number in range(images // 2)
    ]
