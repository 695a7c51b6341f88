"""What heads share whose prototypes belong to classes: their losses, projection, pruning, provenance.

Cells z `b d h w` (what an add-on makes of the features), prototypes `p d`, similarity maps s `b p h w`, W `c p`.
Chen et al., "This Looks Like That: Deep Learning for Interpretable Image Recognition", NeurIPS 2019.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Features, Phase
from .best_cell import BestCellHead, PrototypeState, PrototypeStateT, best_cells
from .connection import Connection
from .nearest import Patch, Search, assigned, nearest_patches
from .options import check_range

# Chen et al., appendix: of a prototype's nearest patches of all classes, how many are looked at and must be its own.
_PRUNE_NEAREST, _PRUNE_OWN = 6, 3
# Prototypes start anywhere, the backbone does not. The original's is 1/30, of 3e-3 and over a hundred epochs and more.
_BACKBONE_RATE = 0.1


class PrototypeHead(BestCellHead[PrototypeStateT]):
    """A head whose prototypes belong to classes and count by their best cell. Subclasses say what similarity is.

    They set `add_on`, and write `proximity` and `activation`.
    """

    last_layer = ("head.connection.*",)

    owners: Tensor

    def __init__(self, num_features: int, num_classes: int, *, per_class: int, dim: int, connection: str) -> None:
        super().__init__(num_features, num_classes)
        check_range("per_class", per_class, 1)
        owners = torch.arange(num_classes).repeat_interleave(per_class)
        self.register_buffer("owners", owners)
        self.register_buffer("is_kept", torch.ones(len(owners), dtype=torch.bool))
        self.add_on: nn.Module = nn.Identity()
        self.prototypes = nn.Parameter(torch.randn(len(owners), dim))
        self.connection = Connection(owners, num_classes, connection)

    @property
    def weight(self) -> Tensor:
        """What each prototype (p) counts for each class (c): `c p`, zero where it was pruned."""
        return self.connection() * self.is_kept

    @property
    def belongs(self) -> Tensor:
        """Which classes own each prototype: `c p` bool. One each, here; a pool's may have several, or none."""
        return self.connection.own > 0

    def proximity(self, cells: Tensor) -> Tensor:
        """How near cells `b d h w` are to the prototypes: `b p h w`; what is largest at the best cell."""
        raise NotImplementedError

    def activation(self, proximity: Tensor) -> Tensor:
        """The similarity that counts, which rises with the proximity, elementwise."""
        raise NotImplementedError

    def found(self, features: Features) -> tuple[Tensor, Tensor]:
        """Cells `b d h w` and their proximity to each prototype `b p h w`, from features `b d h w`."""
        cells = self.add_on(features)
        return cells, self.proximity(cells)

    def score(self, features: Features) -> PrototypeStateT:
        """Logits `b c` from features `b d h w`; `parts` are the similarity maps `b p h w`."""
        return self.scored(*self.found(features))  # type: ignore[return-value]

    def scored(self, cells: Tensor, proximity: Tensor) -> PrototypeState:
        """The state of cells `b d h w` with a proximity to each prototype `b p h w`."""
        best, places = best_cells(proximity)
        activations = self.activation(best)
        logits = functional.linear(activations, self.weight)
        return PrototypeState(cells, logits, self.activation(proximity), best, activations, places)

    def losses(self, state: PrototypeStateT, targets: Tensor) -> dict[str, Tensor]:
        """`cluster` and `separation`; where weights are learned and may be of either sign, `sparsity`."""
        cluster, separation = cluster_and_separation(state.proximities, self.owners, targets)
        return {"cluster": cluster, "separation": separation, **self.sparsity()}

    def sparsity(self) -> dict[str, Tensor]:
        """The term of that name where weights are learned, else nothing."""
        return {} if self.connection.weight is None else {"sparsity": self.connection.of_others()}

    def loss_weights(self) -> dict[str, float]:
        """The original's."""
        own = {"cluster": 0.8, "separation": 0.08}
        return own if self.connection.weight is None else own | {"sparsity": 1e-4}

    def phases(self) -> list[Phase]:
        """Warm-up with the backbone frozen, all together, projection, and then the connection alone."""
        of_prototypes = [f"head.{name}" for name, _ in self.named_parameters() if not name.startswith("connection.")]
        last = (
            Phase("judged", epochs=1, trains=())
            if self.connection.weight is None
            else Phase("last layer", share=0.2, trains=self.last_layer)
        )
        return [
            Phase("warm", share=0.2, trains=of_prototypes),
            Phase(
                "joint",
                share=0.6,
                trains=("backbone.*", *of_prototypes),
                lr_scale={"backbone.*": _BACKBONE_RATE},
                project=True,
            ),
            last,
        ]

    def after_step(self) -> None:
        """Non-negative weights back into their range."""
        self.connection.clamp_()

    def no_weight_decay(self) -> set[str]:
        """Prototypes and the connection: neither means anything at 0."""
        return {"prototypes"} | ({"connection.weight"} if self.connection.weight is not None else set())

    @torch.no_grad()
    def project(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Each prototype becomes the nearest patch of its class, no two of a class the same cell; where from is kept.

        A class without images keeps its prototypes as they are. Returns the mean proximity before it was made perfect.
        """
        patches = nearest_patches(loader, model, self.search(own_class=True))
        chosen = assigned(patches, self.owners.tolist())
        for number, patch in enumerate(chosen):
            if patch is not None:
                self.become(number, patch.vector)
        # The class of the image: the prototype's own, or one of those that share it.
        classes = [-1 if patch is None else patch.label for patch in chosen]
        self.provenance = provenance_of(chosen, classes, model, self.scale)
        return mean_proximity(chosen)

    def become(self, number: int, vector: Tensor) -> None:
        """Prototype `number` takes the vector of a cell."""
        self.prototypes[number] = vector.to(self.prototypes)

    def search(self, *, own_class: bool, count: int | None = None) -> Search:
        """For `nearest_patches`: in images of the prototype's own class, or of all; `count` of them, one an image.

        Without a `count` as many as make sure that each prototype of a class can get a cell of its own.
        """
        most = int(self.owners.bincount().max())
        return Search(
            lambda features: self.found(features)[::-1],
            count=count or most,
            owners=self.belongs if own_class else None,
            per_image=1 if count else most,
        )

    @torch.no_grad()
    def prune(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Drop prototypes of which fewer than three of the six nearest patches, of all classes, are of their class.

        A class keeps the one of its prototypes that has most. Returns how many are left.
        """
        patches = nearest_patches(loader, model, self.search(own_class=False, count=_PRUNE_NEAREST))
        own = [
            sum(is_owner[patch.label] for patch in near)
            for near, is_owner in zip(patches, self.belongs.T.tolist(), strict=True)
        ]
        counts = torch.tensor(own, device=self.owners.device)
        self.keep(counts >= _PRUNE_OWN, counts)
        return {"prototypes": float(self.is_kept.sum())}


def cluster_and_separation(proximities: Tensor, owners: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Means over images of −(the nearest prototype of the own class) and of the nearest of any other class.

    Proximities `b p`, class of each prototype `p`, labels `b`. Chen et al., section 2.2: for proximities that are
    negative squared distances these are Clst and Sep. With a single class nothing is to be separated: 0.
    """
    return nearest_own_and_other(proximities, owners == targets[:, None])


def nearest_own_and_other(proximities: Tensor, is_own: Tensor) -> tuple[Tensor, Tensor]:
    """As `cluster_and_separation`, where `is_own` (b p bool) says which prototypes belong to the image's class."""
    own = proximities.masked_fill(~is_own, -torch.inf).amax(1)
    others = proximities.masked_fill(is_own, -torch.inf).amax(1)
    return -own.mean(), others.where(others > -torch.inf, 0.0).mean()


def off_orthonormal(gram: Tensor, owners: Tensor) -> Tensor:
    """How far each class's prototypes are from an orthonormal basis: B_c B_cᵀ − I, all classes in one `p p`.

    `gram`: inner products of all pairs; 0 is returned for pairs of different classes.
    """
    same_class = owners == owners[:, None]
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)) * same_class


def mean_over_pairs(values: Tensor) -> Tensor:
    """The mean of a symmetric `c c` over pairs of different classes; 0 where there is one class only."""
    count = len(values) * (len(values) - 1) // 2
    return values.triu(1).sum() / max(1, count)


def provenance_of(
    patches: list[Patch | None], owners: Sequence[int | None], model: nn.Module, scale: float = 1.0
) -> list[dict[str, Any]]:
    """Where each prototype came from, in plain values; those without a patch are left out.

    `owners`: the class of each prototype, null where it belongs to none.
    `cell`: row and column. `box`: the cell's receptive field, x1 y1 x2 y2 in pixels of the model's input, which may
    lie outside it; null where it is not known. `scale`: cells of the features for each cell of the maps.
    """
    anatomy: Any = model
    entries = []
    for number, patch in enumerate(patches):
        if patch is None:
            continue
        entries.append(
            {
                "prototype": number,
                "class": owners[number],
                "image": patch.image,
                "cell": [patch.row, patch.column],
                "box": None if anatomy.grid is None else list(anatomy.grid.box(patch.row, patch.column, scale)),
                "proximity": patch.proximity,
            }
        )
    return entries


def mean_proximity(patches: list[Patch | None]) -> dict[str, float]:
    """What a projection reports of the patches it chose: how near they were, on average."""
    found = [patch.proximity for patch in patches if patch is not None]
    return {"projection_proximity": sum(found) / max(1, len(found))}


def add_on_layers(num_features: int, dim: int, last: nn.Module | None = None) -> nn.Sequential:
    """Two 1×1 convolutions with a ReLU between, to `dim` channels, and `last` where wanted."""
    layers = nn.Sequential(
        nn.Conv2d(num_features, dim, 1), nn.ReLU(), nn.Conv2d(dim, dim, 1), *([last] if last else [])
    )
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layers
