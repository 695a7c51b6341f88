"""Whether prototypes mean parts: consistency, stability and purity, from where they are found and where the parts are.

Boxes `n p 4` (x1 y1 x2 y2, of n images and p prototypes), points of parts `n q 2` (x y, NaN where not visible), in the
same pixels. A hit `n p q` is a visible part inside a prototype's box.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional


def best_points(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Where maps `b p h w`, resized to `size` (height, width) by bicubic interpolation, are largest: `b p 2`, x y."""
    # Rows and columns in turn, as matrices: torch's own takes many times as long for thousands of small maps.
    rows, columns = (_bicubic(cells, pixels).to(maps) for cells, pixels in zip(maps.shape[-2:], size, strict=True))
    places = (rows @ maps.float() @ columns.T).flatten(2).argmax(-1)
    return torch.stack([places % size[1], places // size[1]], -1) + 0.5


def _bicubic(cells: int, pixels: int) -> Tensor:
    """What bicubic interpolation makes of each of `cells` along a line of `pixels`: `pixels cells`."""
    lines = functional.interpolate(torch.eye(cells)[None, :, :, None], (pixels, 1), mode="bicubic")
    return lines[0, :, :, 0].T


def cell_centres(places: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The middles `… 2` (x y) of the cells `places` (…, counted row by row) of a grid (h, w) stretched over `size`."""
    rows, columns = places // grid[1], places % grid[1]
    return torch.stack([(columns + 0.5) * size[1] / grid[1], (rows + 0.5) * size[0] / grid[0]], -1)


def boxes_around(points: Tensor, half_size: tuple[float, float]) -> Tensor:
    """Boxes `… 4` that reach `half_size` (height, width) to each side of points `… 2`."""
    reach = points.new_tensor([half_size[1], half_size[0]])
    return torch.cat([points - reach, points + reach], -1)


def part_hits(boxes: Tensor, points: Tensor) -> Tensor:
    """Which visible parts lie inside each prototype's box, edges included: `n p q` bool."""
    low, high = rearrange(boxes, "n p (edge xy) -> edge n p 1 xy", edge=2)
    each = points[:, None]
    return ((each >= low) & (each <= high)).all(-1)


def consistency(hits: Tensor, visible: Tensor, counts: Tensor, threshold: float = 0.8) -> Tensor:
    """Whether each prototype finds the same part in every image: `p` of 0 and 1, NaN where no image counts for it.

    1 where some part is hit in at least `threshold` of the images in which it is visible (`visible` n q), of those that
    count for the prototype (`counts` n p: its own class's). Huang et al., "Evaluation and Improvement of
    Interpretability for Self-Explainable Part-Prototype Networks", ICCV 2023, section 4.1.
    """
    weight = counts.float()
    hit = torch.einsum("n p q, n p -> p q", hits.float(), weight)
    seen = torch.einsum("n q, n p -> p q", visible.float(), weight)
    share = (hit / seen).nan_to_num(0.0)  # a part never visible is no part of this class's images
    return (share.amax(1) >= threshold).float().masked_fill(counts.sum(0) == 0, torch.nan)


def stability(hits: Tensor, disturbed: Tensor, counts: Tensor) -> Tensor:
    """In what share of the images that count for it (n p) each prototype hits the same parts under noise: `p`, 0..1.

    `disturbed`: hits of the same images with noise. NaN where no image counts. Huang et al., section 4.2.
    """
    same = (hits == disturbed).all(-1) & counts
    return same.sum(0) / counts.sum(0)


def purity(hits: Tensor, activations: Tensor, count: int = 10) -> Tensor:
    """How often a prototype's strongest patches show one and the same part: `p`, 0..1.

    Of the `count` images of largest activation (n p), the share whose box holds the commonest part. Nauta et al.,
    "PIP-Net", CVPR 2023, section 4 and appendix; left and right of a part count as one (`merged_sides`).
    """
    top = activations.topk(min(count, len(activations)), dim=0).indices
    shown = hits.float().gather(0, top[..., None].expand(-1, -1, hits.shape[-1]))
    return shown.mean(0).amax(-1)


def merged_sides(hits: Tensor, names: tuple[str, ...]) -> Tensor:
    """Hits `n p q` with the columns of "left …" and "right …" joined into one, which is hit where either is."""
    bare = [name.removeprefix("left ").removeprefix("right ") for name in names]
    columns = [[place for place, other in enumerate(bare) if other == name] for name in dict.fromkeys(bare)]
    return torch.stack([hits[..., own].any(-1) for own in columns], -1)
