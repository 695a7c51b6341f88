"""Backbone + head = one classifier that predicts and explains in one forward pass, with timm's own attributes."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from timm.models import group_parameters
from torch import Tensor, nn

from ..common.errors import InputError
from ..heads import Contract, Explain, Explained, Features, Head, Phase, create_head
from ..heads.best_cell import BestCellHead, PrototypeState
from .anatomy import Grid
from .backbone import Backbone
from .config import ModelConfig
from .preprocessing import Preprocess


class ImageClassifier(nn.Module):
    """What every model here is, explaining or not; timm's loaders, optimizers, EMA and `validate` work on it."""

    contract: Contract

    def __init__(self, backbone: Backbone, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    def forward(self, images: Tensor, explain: Explain = 1) -> Explained:
        """Logits and evidence of normalised images `b c h w`; see `Explained` for the shapes.

        `explain`: an int k for the k top classes (0: none), "all", a LongTensor of class ids, `b` or `b k`, or a
        function that makes such a tensor of the logits.

        Raises:
            InputError: The batch has the wrong rank, channels or dtype, or `explain` asks for what is not there.
        """
        return self.forward_with_losses(images, None, explain)[0]

    def forward_with_losses(
        self, images: Tensor, targets: Tensor | None, explain: Explain = 0
    ) -> tuple[Explained, dict[str, Tensor]]:
        """As `forward`, and the head's auxiliary loss terms for `targets` from the same pass."""
        self._check(images)
        return self.forward_head(self.backbone(images), targets, explain)

    def forward_head(
        self, features: Features, targets: Tensor | None, explain: Explain = 0
    ) -> tuple[Explained, dict[str, Tensor]]:
        """As `forward_with_losses`, from what the backbone made of the images."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        """What makes logits of features: all that trains where the backbone is frozen."""
        raise NotImplementedError

    def allows_multi_label(self) -> bool:
        """Whether the logits stand apart, so that each class can be there or not (`Head.allows_multi_label`)."""
        return True

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits `… c`: of each class by itself where an image can show several (sigmoid), else of one (softmax)."""
        return logits.sigmoid() if self.config.multi_label else logits.softmax(-1)

    def loss_weights(self) -> dict[str, float]:
        """Default weights of the auxiliary loss terms, by name; 1 where none is given."""
        return {}

    def phases(self) -> list[Phase]:
        """The training phases when a recipe names none."""
        return [Phase()]

    def project(self, loader: Iterable[Any]) -> dict[str, float]:
        """What the head does at the end of a phase that gradients cannot (`Head.project`), and numbers about it."""
        raise InputError("this model has no prototypes to project: leave `project` out of the phase")

    def prune(self, loader: Iterable[Any]) -> dict[str, float]:
        """Drop what the head's paper drops (`Head.prune`); returns numbers about it."""
        raise InputError("this model has no prototypes to prune: leave `prune` out of the phase")

    def after_step(self) -> None:
        """What the head asks for after each step of the optimizer."""

    def training_state(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights, and no checkpoint holds."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take up what `training_state` gave."""

    @property
    def views(self) -> int:
        """How many views of each training image the head learns from."""
        return 1

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """Where each prototype came from; empty where there are none, or none was projected yet."""
        return []

    def as_logits(self) -> "Logits":
        """A view that returns the plain logits `b c`, as captum and other tools expect; see `Logits`."""
        return Logits(self)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.config.num_classes

    @property
    def num_features(self) -> int:
        """Channels of the backbone's feature map, of the deepest one where the head looks at several."""
        return self.backbone.num_features

    @property
    def grid(self) -> Grid | None:
        """Where the cells of the maps look at the image; None where it is not known."""
        return self.backbone.grid

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; the class's number where none is known."""
        return self.config.class_names or tuple(str(index) for index in range(self.num_classes))

    @property
    def preprocess(self) -> Preprocess:
        """The evaluation transform: a PIL image (or a `Sample`) to the model's input."""
        return self.config.preprocessing.transform()

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Timm's description of these weights, as `timm.data.resolve_data_config` reads it."""
        preprocessing = self.config.preprocessing
        return {
            **vars(preprocessing),
            "architecture": self.config.architecture,
            "num_classes": self.num_classes,
            "label_names": self.config.class_names,
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that must not decay; timm's optimizers ask."""
        names: set[str] = getattr(self.backbone.network, "no_weight_decay", set)()
        return {f"backbone.network.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float, ...]]:
        """A parameter's depth, for layer-wise learning rates: timm's own for the backbone, last for the head."""
        network = self.backbone.network
        depths = group_parameters(network, network.group_matcher(coarse=coarse), reverse=True)

        def depth(name: str) -> tuple[float, ...]:
            return (float(depths.get(name.removeprefix("backbone.network."), "inf")),)

        return depth

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in the backbone, where timm can."""
        self.backbone.network.set_grad_checkpointing(enable)

    def _check(self, images: Tensor) -> None:
        channels = self.config.in_chans
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            dtype = str(images.dtype).removeprefix("torch.")
            raise InputError(
                f"float images of shape (b, {channels}, h, w) expected, got {dtype} {tuple(images.shape)}: "
                "see model.preprocess"
            )


class InterpretableClassifier(ImageClassifier):
    """A backbone with an interpretable head: the evidence is part of the computation."""

    def __init__(self, backbone: Backbone, head: Head, config: ModelConfig) -> None:
        super().__init__(backbone, config)
        self.head = head

    @property
    def contract(self) -> Contract:  # type: ignore[override]
        """How evidence and logits are tied."""
        return self.head.contract

    def forward_head(
        self, features: Features, targets: Tensor | None, explain: Explain = 0
    ) -> tuple[Explained, dict[str, Tensor]]:
        """As `forward_with_losses`, from what the backbone made of the images."""
        return self.head.forward_with_losses(features, targets, explain)

    def allows_multi_label(self) -> bool:
        """The head's."""
        return self.head.allows_multi_label()

    def loss_weights(self) -> dict[str, float]:
        """The head's."""
        return self.head.loss_weights()

    def phases(self) -> list[Phase]:
        """The head's."""
        return self.head.phases()

    def project(self, loader: Iterable[Any]) -> dict[str, float]:
        """As the head does."""
        return self.head.project(loader, self)

    def prune(self, loader: Iterable[Any]) -> dict[str, float]:
        """As the head does."""
        return self.head.prune(loader, self)

    def after_step(self) -> None:
        """As the head does."""
        self.head.after_step()

    def training_state(self) -> dict[str, Any]:
        """The head's."""
        return self.head.training_state()

    def load_training_state(self, state: dict[str, Any]) -> None:
        """The head's."""
        self.head.load_training_state(state)

    @property
    def views(self) -> int:
        """The head's."""
        return self.head.views

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """The head's."""
        return self.head.provenance

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A new head of the same kind for `num_classes` classes; their names are forgotten."""
        self.config = replace(self.config, num_classes=num_classes, class_names=None)
        reference = next(self.head.parameters())
        head = create_head(self.config.head, self.backbone.head_features, num_classes, **self.config.head_kwargs)
        self.head = head.to(device=reference.device, dtype=reference.dtype)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that must not decay, the head's included."""
        return super().no_weight_decay() | {f"head.{name}" for name in self.head.no_weight_decay()}


class BlackBoxClassifier(ImageClassifier):
    """timm's own model and classifier, to compare with: it explains nothing, so `classes` is always empty."""

    contract = Contract.NONE

    def forward_head(
        self, features: Features, targets: Tensor | None, explain: Explain = 0
    ) -> tuple[Explained, dict[str, Tensor]]:
        """Logits alone, whatever `explain` asks: classes `b 0`, maps `b 0 h w`, offset `b 0`, parts `b 0 h w`."""
        assert isinstance(features, Tensor)
        logits = self.backbone.classify(features)
        nothing = features.new_zeros(features.shape[0], 0, *features.shape[-2:])
        no_classes = nothing.new_zeros(nothing.shape[:2])
        return Explained(logits, no_classes.long(), nothing, no_classes, nothing), {}

    def get_classifier(self) -> nn.Module:
        """Timm's classifier."""
        return self.backbone.network.get_classifier()

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier of timm's for `num_classes` classes; their names are forgotten."""
        self.config = replace(self.config, num_classes=num_classes, class_names=None)
        self.backbone.network.reset_classifier(num_classes)


def prototype_head(model: ImageClassifier) -> BestCellHead[PrototypeState]:
    """The head of a model whose prototypes have weights for classes.

    Raises:
        InputError: It has none.
    """
    if not isinstance(model, InterpretableClassifier) or not isinstance(model.head, BestCellHead):
        raise InputError(f"head {model.config.head!r} has no prototypes with weights for classes")
    return model.head


class Logits(nn.Module):
    """A model's plain logits, for tools that know no `Explained`: parameters, modules and mode are its own."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits `b c` of images `b c h w`; no evidence is computed."""
        return self.model(images, explain=0).logits

    @property
    def training(self) -> bool:
        """The model's: a tool that puts this flag back must not put a model in eval mode back to training."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        """Nothing to keep: `train` goes on to the model."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.model.num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The model's. Not under timm's older name `default_cfg`: with it, `validate --test-pool` replaces heads."""
        return self.model.pretrained_cfg
