"""Boxes around all that a map shows above a threshold, for all its thresholds and many maps in one pass.

The boxes are those of OpenCV's contours (`findContours`, `RETR_TREE`): one around each 8-connected bright component, and
one around each hole, a 4-connected dark component that does not reach the border, whose contour runs on the bright
pixels around it. A threshold lower by one adds pixels, which grow and merge components: so each pixel is joined to its
neighbours once, not once a threshold, and all maps advance together.
"""

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 255  # cuts of values 0 to 255: above 0, above 1 … above 254
_OUTSIDE = -(1 << 20)  # where the box of the dark region around the map begins: it is no hole


def box_hits(values: Tensor, boxes: Tensor, overlaps: tuple[float, ...]) -> Tensor:
    """Whether any contour's box overlaps any true box so much, at each cut: `n 255 k` bool.

    The contours at cut v are those of `values > v`.

    Args:
        values: `n h w`, integers 0 to 255.
        boxes: `n g 4`, integers: x1 y1 x2 y2, filled up with rows of -1 where an image has fewer than g.
        overlaps: k thresholds of the intersection over union, ascending.
    """
    bright = _hits_while_growing(values, boxes, overlaps, is_bright=True).flip(1)  # 255 first, then 254 …
    return bright | _hits_while_growing(255 - values, boxes, overlaps, is_bright=False)


def best_overlap(found: Tensor, boxes: Tensor) -> Tensor:
    """The largest intersection over union with any true box: `found` n 4 and `boxes` n g 4 to n, fp64.

    Both corners belong to a box (the "+ 1 convention"); a true box of -1s overlaps with nothing.
    """
    low = torch.maximum(found[:, None, :2], boxes[..., :2])
    high = torch.minimum(found[:, None, 2:], boxes[..., 2:])
    shared = (high - low + 1).clamp(min=0).prod(-1)
    own, true = ((some[..., 2:] - some[..., :2] + 1).prod(-1) for some in (found, boxes))
    overlap = shared.double() / (own[:, None] + true - shared)
    return overlap.masked_fill(boxes[..., 0] < 0, 0).amax(-1)


def _hits_while_growing(values: Tensor, boxes: Tensor, overlaps: tuple[float, ...], is_bright: bool) -> Tensor:
    """Adds the pixels of value 255, 254 … 1; after each value, which overlaps some component's box reaches."""
    forest = _Forest(values, boxes, overlaps, is_bright)
    order = values.flatten().argsort(descending=True, stable=True)
    counts = values.flatten().bincount(minlength=LEVELS + 1).flip(0).tolist()[:LEVELS]
    hits = torch.empty(len(values), LEVELS, len(overlaps), dtype=torch.bool, device=values.device)
    for step, pixels in enumerate(order[: sum(counts)].split(counts)):
        if len(pixels):
            forest.add(forest.node(pixels), LEVELS - step)
        hits[:, step] = forest.hits()
    return hits


class _Forest:
    """Components of n maps as trees of pixels (union-find); a tree's root knows its box and how well that overlaps.

    Pixels are numbered through all maps, each of which has a frame of one pixel.
    """

    def __init__(self, values: Tensor, boxes: Tensor, overlaps: tuple[float, ...], is_bright: bool) -> None:
        num_maps, self._height, self._width = values.shape
        device = values.device
        self._boxes, self._is_bright = boxes, is_bright
        self._overlaps = torch.tensor(overlaps, dtype=torch.float64, device=device)
        framed = functional.pad(values, (1, 1, 1, 1), value=-1 if is_bright else LEVELS + 1)
        self._map_size, row = framed[0].numel(), framed.shape[2]
        self._values = framed.flatten()
        self._steps = torch.tensor([1, row, row - 1, row + 1] if is_bright else [1, row], device=device)
        self._parent = torch.arange(framed.numel(), device=device)
        x, y = (torch.arange(side, device=device) - 1 for side in (row, framed.shape[1]))
        place = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
        self._extent = torch.cat([place, -place], 1).repeat(num_maps, 1)  # left, top, -right, -bottom
        if not is_bright:
            frame = (framed > LEVELS).flatten()
            first = torch.arange(num_maps, device=device) * self._map_size
            self._parent[frame] = first.repeat_interleave(self._map_size)[frame]
            self._extent[first] = _OUTSIDE
        self._grade = torch.zeros(framed.numel(), dtype=torch.int64, device=device)  # how many overlaps a root reaches
        self._last = torch.empty_like(self._parent)
        self._count = torch.zeros(num_maps, len(overlaps) + 1, dtype=torch.int64, device=device)  # of components

    def node(self, pixels: Tensor) -> Tensor:
        """The numbers of `pixels`, which are counted without frames."""
        size = self._height * self._width
        row, column = (pixels % size).div(self._width, rounding_mode="floor"), pixels % self._width
        return pixels.div(size, rounding_mode="floor") * self._map_size + (row + 1) * (self._width + 2) + column + 1

    def hits(self) -> Tensor:
        """Whether some component reaches each overlap: `n k`."""
        return self._count[:, 1:].flip(1).cumsum(1).flip(1) > 0

    def add(self, nodes: Tensor, value: int) -> None:
        """The pixels `nodes`, all those of `value`, join their neighbours of this value or higher."""
        neighbours = torch.cat([nodes[:, None] + self._steps, nodes[:, None] - self._steps], 1)
        theirs = self._values[neighbours]
        is_edge = theirs > value
        is_edge[:, : len(self._steps)] |= theirs[:, : len(self._steps)] == value  # once, from the first of the two
        own = nodes[:, None].expand_as(neighbours)[is_edge]
        merged = self._joined(own, neighbours[is_edge])
        into = self._root(merged)
        self._extent.scatter_reduce_(0, into[:, None].expand(-1, 4), self._extent[merged], "amin")
        self._regrade(merged, None)
        changed = self._distinct(self._root(nodes))
        self._regrade(changed, self._graded(changed))

    def _joined(self, first: Tensor, second: Tensor) -> Tensor:
        """Joins the components of each pair of pixels; the roots that are roots no more."""
        merged = [first[:0]]
        while True:
            first, second = self._root(first), self._root(second)
            is_apart = first != second
            first, second = first[is_apart], second[is_apart]
            if not len(first):
                return torch.cat(merged)
            first, second = torch.minimum(first, second), torch.maximum(first, second)
            self._parent.scatter_reduce_(0, second, first, "amin")  # a parent's number is lower: no cycles
            merged.append(self._distinct(second))

    def _root(self, nodes: Tensor) -> Tensor:
        """The roots of `nodes`, which then hang from them directly."""
        root = self._parent[nodes]
        while not (above := self._parent[root]).equal(root):
            self._parent[nodes] = above
            root = above
        return root

    def _distinct(self, nodes: Tensor) -> Tensor:
        places = torch.arange(len(nodes), device=nodes.device)
        self._last[nodes] = places
        return nodes[self._last[nodes] == places]

    def _graded(self, roots: Tensor) -> Tensor:
        """How many of the overlaps the boxes of `roots` reach."""
        low, high = self._extent[roots, :2], -self._extent[roots, 2:]
        margin = 0 if self._is_bright else 1  # a hole's contour runs around it
        end = torch.tensor([self._width - 1, self._height - 1], device=roots.device)
        # As the WSOL evaluation: the right and lower corner lie one further, where the image does not end.
        found = torch.cat([low - margin, torch.minimum(high + margin + 1, end)], 1)
        overlap = best_overlap(found, self._boxes[roots.div(self._map_size, rounding_mode="floor")])
        overlap = overlap.masked_fill(low[:, 0] <= _OUTSIDE, 0)
        return torch.bucketize(overlap, self._overlaps, right=True)

    def _regrade(self, roots: Tensor, grades: Tensor | None) -> None:
        """Components at `roots` now have these `grades`; None: they are gone."""
        new = torch.zeros_like(roots) if grades is None else grades
        maps = roots.div(self._map_size, rounding_mode="floor")
        for grade, change in ((self._grade[roots], -1), (new, 1)):
            counts = grade > 0
            amount = torch.full_like(grade[counts], change)
            self._count.index_put_((maps[counts], grade[counts]), amount, accumulate=True)
        self._grade[roots] = new
