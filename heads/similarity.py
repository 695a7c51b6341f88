"""How alike cells and prototypes are: cosine, squared distance, and the activations made of them.

All compute in fp32 at least, whatever they are given: half precision makes squared distances negative, and their
logarithms no number.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional


def widened(tensor: Tensor) -> Tensor:
    """`tensor` in fp32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def inner_products(cells: Tensor, prototypes: Tensor) -> Tensor:
    """⟨z, p⟩ of cells `b d h w` and prototypes `p d`: `b p h w`."""
    return einsum(widened(prototypes), widened(cells), "p d, b d h w -> b p h w")


def cosines(cells: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine of cells `b d h w` and prototypes `p d`: `b p h w` in −1..1; 0 for a cell of nothing but zeros."""
    return inner_products(functional.normalize(widened(cells), dim=1), functional.normalize(widened(prototypes), dim=1))


def squared_distances(cells: Tensor, prototypes: Tensor) -> Tensor:
    """‖z − p‖² of cells `b d h w` and prototypes `p d`: `b p h w`, never negative."""
    cells, prototypes = widened(cells), widened(prototypes)
    norms = rearrange(prototypes.square().sum(1), "p -> p 1 1")
    return (cells.square().sum(1, keepdim=True) - 2 * inner_products(cells, prototypes) + norms).clamp(min=0)


def log_ratio(distances: Tensor, epsilon: float = 1e-4) -> Tensor:
    """log((d + 1) / (d + ε)): falling in the squared distance d, log(1 / ε) at 0 and near 0 far away.

    Chen et al., "This Looks Like That", NeurIPS 2019, equation 1.
    """
    # As log1p: far away it is a small difference of two logarithms, which rounding would blur.
    return ((1 - epsilon) / (distances + epsilon)).log1p()
