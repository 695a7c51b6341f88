"""Builds models by name."""

from typing import Any

from ..common.errors import InputError
from ..heads import create_head, wanted_stages
from .backbone import Backbone, Network, create_network
from .class_names import timm_class_names
from .classifier import BlackBoxClassifier, ImageClassifier, InterpretableClassifier
from .config import BLACK_BOX, BackboneWeights, ModelConfig
from .preprocessing import Preprocessing


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
        pretrained: Load timm's weights. Without `num_classes` timm's classifier is taken over as well: the same
            logits as timm's, and exact maps, with no training.
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
    head = create_head(config.head, backbone.head_features, config.num_classes, **config.head_kwargs)
    classifier = backbone.linear_classifier()
    is_folded = classifier is not None and head.fold(classifier.weight, classifier.bias)
    if takes_over_classifier and not is_folded:
        raise InputError(why_not_folded(config.architecture, config.head, backbone))
    backbone.drop_unused()
    return InterpretableClassifier(backbone, head, config)


def stages_of(head: str, options: dict[str, Any]) -> tuple[int, ...]:
    """The stages that the backbone has to give; a black box has timm's own head, which takes the final features."""
    return (-1,) if head == BLACK_BOX else wanted_stages(head, **options)


def why_not_folded(architecture: str, head: str, backbone: Backbone) -> str:
    """The sentence that says why `head` cannot start as the classifier of `backbone`, whose head is still timm's."""
    instead = "give num_classes to create_model for a new one, to be trained"
    if backbone.linear_classifier() is not None:
        return f"head {head!r} cannot start as timm's classifier: {instead}"
    between = backbone.before_classifier()
    kind = type(backbone.network.get_classifier()).__name__
    what = f"between them: {', '.join(between)}" if between else f"it is a {kind}"
    return (
        f"timm's classifier of {architecture} is no linear layer right after average pooling ({what}), so head "
        f"{head!r} cannot take it over yet: {instead}"
    )


def _provenance(pretrained_cfg: dict[str, Any]) -> BackboneWeights:
    name = ".".join(filter(None, (pretrained_cfg.get("architecture"), pretrained_cfg.get("tag"))))
    source = pretrained_cfg.get("hf_hub_id") or pretrained_cfg.get("url") or None
    return BackboneWeights(name, pretrained_cfg.get("license"), source)
