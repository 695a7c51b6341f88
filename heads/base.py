"""The contract every head keeps: logits and evidence from one feature map, and evidence that adds up to the logit.

Notation: b images, c classes, k explained classes, d channels, p inner maps, h × w the feature grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from einops import einsum
from torch import Tensor, nn

from ..common.errors import InputError
from .steps import Linear, Step, is_plain

if TYPE_CHECKING:
    from collections.abc import Iterable

Features: TypeAlias = Tensor | list[Tensor]
Explain: TypeAlias = int | Literal["all"] | Tensor | Callable[[Tensor], Tensor]


class Explained(NamedTuple):
    """A prediction and what it is made of. Logits first, so that timm's `validate` takes it for a plain output."""

    logits: Tensor  # b c
    classes: Tensor  # b k int64: the classes that `maps` explain
    maps: Tensor  # b k h w: evidence in logit units, signed, at the feature grid's own resolution
    offset: Tensor  # b k: what of the logit has no place in the image
    parts: Tensor  # b p h w: the head's inner maps (attention, prototype similarity); p = 0 where it has none


class Contract(StrEnum):
    """How a head's evidence is tied to its logits (DESIGN.md, section 1).

    LINEAR: evidence is a fixed linear function of the feature at its cell.
    DYNAMIC: exact once the image's own statistics (attention weights, norms, gates) are fixed.
    SELECT: the logit uses only the chosen cells; evidence is zero elsewhere.
    PROBABILITY: logits are log-probabilities, and the evidence adds up to the probability itself.
    NONE: no identity exists; nothing is explained (`classes` is always empty).
    """

    LINEAR = "linear"
    DYNAMIC = "dynamic"
    SELECT = "select"
    PROBABILITY = "probability"
    NONE = "none"

    def explained_quantity(self, logits: Tensor) -> Tensor:
        """What `maps.sum((-2, -1)) + offset` equals: the logits, or the probabilities for PROBABILITY."""
        return logits.exp() if self is Contract.PROBABILITY else logits


@dataclass
class State:
    """What `Head.score` found out, and all that `Head.evidence` needs; a head with more to remember subclasses it."""

    features: Tensor  # b d h w
    logits: Tensor  # b c
    parts: Tensor  # b p h w


@dataclass(frozen=True)
class Phase:
    """One stretch of training: what trains, for how long, at which rate. Plain data; the trainer carries it out.

    `epochs`: None takes a share of the epochs that the recipe's other phases leave, in proportion to `share`.
    `trains`: fnmatch patterns over parameter names; the rest is frozen, its batch norms in eval mode. None at all is a
    phase that only judges: its epochs validate and save.
    `lr_scale`: factors of the recipe's learning rate, by pattern; the first that matches counts, else 1.
    `loss_weights`: of loss terms by name, in this phase alone, whatever the recipe or the head says.
    `project`, `prune`: call the head's `project`, then its `prune`, when the phase ends.
    """

    name: str = "train"
    epochs: int | None = None
    trains: Sequence[str] = ("*",)
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    project: bool = False
    prune: bool = False
    share: float = 1.0
    loss_weights: Mapping[str, float] = field(default_factory=dict)


StateT = TypeVar("StateT", bound=State)


class Head(nn.Module, Generic[StateT]):
    """Turns a feature map into logits and evidence. Subclasses write `score` and `evidence`, and register a name.

    Their constructor takes `num_features, num_classes` and keyword-only options of plain JSON types, so that a
    checkpoint's config.json can hold them. One that overrides `wanted_stages` to look at several stages of the backbone
    takes a list as `num_features`, and a list of features.
    """

    contract: ClassVar[Contract]
    # How many views of each image the head learns from: the same crop, colours changed apart. With several, the state
    # that `losses` gets holds all first views, then all second ones, while its targets name each image once.
    views: ClassVar[int] = 1
    # The head that holds, in this one's stead, a classifier of more than average pooling and a linear layer.
    stand_in: ClassVar[str | None] = None
    has_prototypes: ClassVar[bool] = False  # then its state is a PrototypeState, and `parts` are their maps

    def __init__(self, num_features: int | list[int], num_classes: int) -> None:
        super().__init__()
        # Where each prototype came from, in plain values; kept beside the weights, in a checkpoint's prototypes.json.
        self.provenance: list[dict[str, Any]] = []
        # Of the deepest stage, where there are several.
        self.num_features = num_features if isinstance(num_features, int) else num_features[-1]
        self.num_classes = num_classes

    @classmethod
    def wanted_stages(cls, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Which of the backbone's stages it looks at, shallow to deep, counted from the end: -1 is the final features.

        `options`: all its keyword-only arguments, with defaults filled in. The backbone is not run beyond the last
        of these stages, and does not keep what comes after.
        """
        return (-1,)

    def score(self, features: Features) -> StateT:
        """Logits, and whatever evidence needs, from features `b d h w` (or several stages)."""
        raise NotImplementedError

    def evidence(self, state: StateT, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w` and offset `b k` of `classes` (b k): their sum is the logit (or what `contract` says)."""
        raise NotImplementedError

    def losses(self, state: StateT, targets: Tensor) -> dict[str, Tensor]:
        """Auxiliary loss terms by name, unweighted scalars; the recipe weights them, by default by `loss_weights`.

        `targets`: class ids `b`; or, where `allows_multi_label`, 0 or 1 for each class `b c`.
        """
        return {}

    def allows_multi_label(self) -> bool:
        """Whether its logits stand apart, so that each class can be there or not, whatever the others.

        Then `losses` may get 0 or 1 for each class, `b c`, in place of class ids `b`. A head says no whose classes
        exclude each other, or whose losses need one label.
        """
        return self.contract is not Contract.PROBABILITY

    def loss_weights(self) -> dict[str, float]:
        """Default weights of the terms of `losses`, by name; 1 where none is given."""
        return {}

    def phases(self) -> list[Phase]:
        """The training phases when the recipe names none."""
        return [Phase()]

    def project(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """What gradients cannot do, at the end of a phase: prototypes to their nearest training patches, a selection.

        Deterministic; `loader` gives the training images as for evaluation. Returns numbers about it for metrics.csv.

        Raises:
            InputError: This head has nothing to project.
        """
        raise InputError(f"head {type(self).__name__} has no prototypes to project: leave `project` out of the phase")

    def prune(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Drop the prototypes that stand for nothing, as the head's paper does; `loader` and result as for `project`.

        Raises:
            InputError: This head has nothing to prune.
        """
        raise InputError(f"head {type(self).__name__} has no prototypes to prune: leave `prune` out of the phase")

    def after_step(self) -> None:
        """What has to follow each step of the optimizer: weights brought back into their range, leaves updated."""

    def training_state(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights and no checkpoint may publish; tensors and plain values."""
        return {"provenance": self.provenance}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take up what `training_state` gave."""
        self.provenance = state["provenance"]

    def fold(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Start as the linear classifier (`weight` c d, `bias` c) over globally average-pooled features.

        Returns whether this head can; it then gives that classifier's logits.
        """
        return False

    def take_over(self, steps: Sequence[Step]) -> bool:
        """Start as the classifier that `steps` (from features to logits) are; as `fold` for average pooling and one
        linear layer, which is all that most heads can.
        """
        last = steps[-1]
        return is_plain(steps) and isinstance(last, Linear) and self.fold(last.weight, last.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of own parameters that must not decay (prototypes, temperatures), as timm's optimizers ask."""
        return set()

    def forward(self, features: Features, explain: Explain = 1) -> Explained:
        """Logits, and evidence for the classes that `explain` names (see `choose_classes`)."""
        return self.forward_with_losses(features, None, explain)[0]

    def forward_with_losses(
        self, features: Features, targets: Tensor | None, explain: Explain = 0
    ) -> tuple[Explained, dict[str, Tensor]]:
        """As `forward`, and `losses` for `targets` from the same pass ({} without targets)."""
        device_type = (features if isinstance(features, Tensor) else features[0]).device.type
        if device_type != "meta" and torch.is_autocast_enabled(device_type):
            # Evidence must add up to the logit, and bf16 misses it by 2e-3; beside its backbone an fp32 head is free.
            with torch.autocast(device_type, enabled=False):
                return self.forward_with_losses(_widened(features), targets, explain)
        state = self.score(features)
        return self.explained(state, explain), {} if targets is None else self.losses(state, targets)

    def explained(self, state: StateT, explain: Explain) -> Explained:
        """Evidence for the classes that `explain` names, from a state that `score` returned."""
        classes = choose_classes(state.logits, explain)
        maps, offset = self.evidence(state, classes)
        return Explained(state.logits, classes, maps, offset, state.parts)


def choose_classes(logits: Tensor, explain: Explain) -> Tensor:
    """The classes to explain, `b k` int64, for logits `b c`.

    `explain`: an int k for the k top classes (0: none), "all", a LongTensor of class ids, `b` or `b k`, or a function
    that makes such a tensor of the logits, where the choice depends on them ("the label and its strongest rival").

    Raises:
        InputError: `explain` is none of these, asks for more classes than there are, or names one out of range
            (ids on an accelerator are not looked at: that would wait for the device).
    """
    num_images, num_classes = logits.shape
    if callable(explain) and not isinstance(explain, Tensor):
        explain = explain(logits.detach())
    if isinstance(explain, Tensor):
        return _checked_classes(explain, num_images, num_classes)
    if isinstance(explain, str):
        if explain != "all":
            raise InputError(f'explain={explain!r}: say "all", a number of top classes, or a tensor of class ids')
        return torch.arange(num_classes, device=logits.device).expand(num_images, num_classes)
    if isinstance(explain, bool) or not isinstance(explain, int):
        raise InputError(f'explain takes an int, "all" or a tensor of class ids, not {type(explain).__name__}')
    if not 0 <= explain <= num_classes:
        raise InputError(f"explain={explain}: the model has {num_classes} classes, so 0 to {num_classes} can be asked")
    return logits.detach().topk(explain, dim=1).indices


def _checked_classes(classes: Tensor, num_images: int, num_classes: int) -> Tensor:
    if classes.ndim == 1:
        classes = classes[:, None]
    if classes.ndim != 2 or classes.shape[0] != num_images:
        shape = tuple(classes.shape)
        raise InputError(f"explain: class ids of shape ({num_images},) or ({num_images}, k) expected, got {shape}")
    if classes.dtype != torch.int64:
        raise InputError(f"explain: class ids must be int64, got {str(classes.dtype).removeprefix('torch.')}")
    if not torch.compiler.is_compiling() and classes.device.type == "cpu" and classes.numel():
        low, high = classes.min().item(), classes.max().item()
        if low < 0 or high >= num_classes:
            raise InputError(f"explain: class {low if low < 0 else high} is not among 0 to {num_classes - 1}")
    return classes


def linear_evidence(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Sum-form evidence `b k h w` of `classes` (b k) for a linear classifier `weight` (c d) over mean-pooled features.

    At each cell W_c · x / (h w): its sum over the grid is W_c · mean(x). All class maps are built only where all are
    asked for; gathering (b, c, d) weights would then cost more than the maps.
    """
    height, width = features.shape[-2:]
    if classes.shape[1] == weight.shape[0]:
        every = einsum(weight, features, "c d, b d h w -> b c h w")
        maps = every.gather(1, classes[..., None, None].expand(-1, -1, height, width))
    else:
        maps = einsum(weight[classes], features, "b k d, b d h w -> b k h w")
    return maps / (height * width)


def no_parts(features: Tensor) -> Tensor:
    """The `parts` of a head without inner maps: `b 0 h w`."""
    return features.new_zeros(features.shape[0], 0, *features.shape[-2:])


def _widened(features: Features) -> Features:
    """Features that autocast made half precision in fp32; others as they are."""
    if not isinstance(features, Tensor):
        return [stage.float() if stage.itemsize < 4 else stage for stage in features]
    return features.float() if features.itemsize < 4 else features
