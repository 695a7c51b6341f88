"""Builds models by name."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..common.errors import InputError
from ..heads import Step, create_head, head_class, wanted_stages
from ..heads.steps import is_plain
from .backbone import Backbone, Network, create_network
from .class_names import timm_class_names
from .classifier import BlackBoxClassifier, ImageClassifier, InterpretableClassifier
from .config import BLACK_BOX, BackboneWeights, ModelConfig
from .preprocessing import Preprocessing
from .timm_classifier import NoSteps

NEW_ONE = "give num_classes to create_model for a new one, to be trained"


def create_model(
    name: str,
    *,
    head: str = "cam",
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    output_stride: int | None = None,
    head_kwargs: dict[str, Any] | None = None,
    backbone_kwargs: dict[str, Any] | None = None,
    class_names: tuple[str, ...] | list[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> ImageClassifier:
    """A timm CNN with an interpretable head.

    Args:
        name: timm's name, with tag or source if wanted: "resnet50", "resnet50.a1_in1k", "hf-hub:ID", "local-dir:PATH".
        head: A name from `list_heads()`, or "black_box": timm's own classifier, which explains nothing.
        pretrained: Load timm's weights. Without `num_classes` timm's classifier is taken over as well, untrained: "cam"
            gives timm's own logits and exact maps of them, through whatever stands between pooling and logits
            (`dynamic_cam` then takes its place); a head that pools otherwise starts near them, as its `fold` says.
        num_classes: For a new classifier; default: timm's number for these weights.
        in_chans: Image channels.
        output_stride: Pixels per cell of the map, where timm can lower it by dilation (8 or 16).
        head_kwargs: The head's options, plain JSON values.
        backbone_kwargs: Passed on to timm (drop_path_rate, …), plain JSON values.
        class_names: One a class; kept in the checkpoint. A classifier taken over from timm brings its own, or
            ImageNet's (`timm_class_names`).
        preprocessing: What the model's images went through; default: what timm states for these weights.

    Raises:
        InputError: An unknown name (the nearest are listed), no CNN, fewer than one class, weights that cannot be
            loaded, or a classifier of timm's that `head` cannot take over.
    """
    stages = stages_of(head, head_kwargs or {})
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes={num_classes}: a classifier needs at least one class")
    takes_over_classifier = pretrained and num_classes is None
    network = create_network(
        name,
        pretrained=pretrained,
        num_classes=num_classes,
        in_chans=in_chans,
        output_stride=output_stride,
        stages=stages,
        **(backbone_kwargs or {}),
    )
    if network.module.num_classes < 1:
        raise InputError(f"the weights of {name!r} come without a classifier: give num_classes for a new one")
    names = class_names
    if not names and takes_over_classifier:
        names = timm_class_names(network.pretrained_cfg, network.module.num_classes)
    config = ModelConfig(
        architecture=network.architecture,
        num_classes=network.module.num_classes,
        head=head,
        in_chans=in_chans,
        output_stride=network.output_stride,
        head_kwargs=head_kwargs or {},
        backbone_kwargs=network.model_args,
        class_names=tuple(names) if names else None,
        preprocessing=preprocessing or Preprocessing.from_timm(network.pretrained_cfg, in_chans),
        backbone_weights=_provenance(network.pretrained_cfg) if pretrained else None,
    )
    return assemble(network, config, takes_over_classifier)


def build_model(config: ModelConfig) -> ImageClassifier:
    """The model that `config` describes, with fresh weights: nothing is loaded or downloaded."""
    network = create_network(
        config.architecture,
        num_classes=config.num_classes,
        in_chans=config.in_chans,
        output_stride=config.output_stride,
        stages=stages_of(config.head, config.head_kwargs),
        **config.backbone_kwargs,
    )
    return assemble(network, config)


def assemble(network: Network, config: ModelConfig, takes_over_classifier: bool = False) -> ImageClassifier:
    """Backbone + head. A head that can starts as timm's classifier, so that it trains from where a black box does.

    Raises:
        InputError: `takes_over_classifier`, and the head cannot start as timm's classifier.
    """
    backbone = Backbone(network.module, network.anatomy)
    if config.head == BLACK_BOX:
        return BlackBoxClassifier(backbone, config)
    steps: list[Step] = []
    if takes_over_classifier:
        steps = steps_for(config.head, config.architecture, backbone)
        config = _holding(config, steps)
    else:
        with suppress(NoSteps):
            steps = backbone.classifier_steps()
    head = create_head(config.head, backbone.head_features, config.num_classes, **config.head_kwargs)
    is_taken_over = bool(steps) and head.take_over(steps)
    if takes_over_classifier and not is_taken_over:
        raise InputError(f"head {config.head!r} cannot start as timm's classifier: {NEW_ONE}")
    backbone.drop_unused()
    return InterpretableClassifier(backbone, head, config)


def steps_for(head: str, architecture: str, backbone: Backbone) -> list[Step]:
    """Timm's classifier in `backbone` as steps that `head`, or its stand-in, can hold.

    Raises:
        InputError: It is no chain of steps, or has more of them than `head` can hold.
    """
    try:
        steps = backbone.classifier_steps()
    except NoSteps as error:
        raise InputError(
            f"timm's classifier of {architecture} cannot be taken over, since between features and logits stands "
            f"{error}: {NEW_ONE}"
        ) from None
    if not is_plain(steps) and head_class(head).stand_in is None:
        kinds = ", ".join(step.kind for step in steps[:-1])
        raise InputError(
            f"head {head!r} can take over a linear layer right after average pooling, and timm's classifier of "
            f'{architecture} has more before it ({kinds}): take head="cam", or {NEW_ONE}'
        )
    return steps


def _holding(config: ModelConfig, steps: Sequence[Step]) -> ModelConfig:
    """`config`, with the head that holds `steps` in the stead of one that cannot."""
    stand_in = head_class(config.head).stand_in
    if is_plain(steps) or stand_in is None:
        return config
    described = [*(step.description for step in steps[:-1]), {"kind": "linear"}]
    return replace(config, head=stand_in, head_kwargs={"steps": described})


def stages_of(head: str, options: dict[str, Any]) -> tuple[int, ...]:
    """The stages that the backbone has to give; a black box has timm's own head, which takes the final features."""
    return (-1,) if head == BLACK_BOX else wanted_stages(head, **options)


def _provenance(pretrained_cfg: dict[str, Any]) -> BackboneWeights:
    name = ".".join(filter(None, (pretrained_cfg.get("architecture"), pretrained_cfg.get("tag"))))
    source = pretrained_cfg.get("hf_hub_id") or pretrained_cfg.get("url") or None
    return BackboneWeights(name, pretrained_cfg.get("license"), source)
