"""Any CNN of timm as a map of features: `b c h w` in, `b d h w` out."""

from difflib import get_close_matches
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from timm.models import is_model, resolve_model_input_args
from torch import Tensor, nn

from ..common.errors import InputError, unknown_name
from ..heads import Features, Step
from .anatomy import Anatomy, NoSuchStage, NotConvolutional, examine, features_at
from .catalogue import is_convolutional
from .eval_mode import eval_mode
from .timm_classifier import NoSteps, read_classifier


class Backbone(nn.Module):
    """timm's model, unchanged, seen through `forward_features` as (b, d, h, w), or at the stages that a head wants.

    `forward_features` and nothing else gives what timm's own head pools, with `num_features` channels, for every CNN:
    the last entry of `features_only=True` lacks the last convolution of many, `global_pool=""` loses the grid of some.

    `num_features` are the deepest stage's channels; `reduction` and `grid` belong to the finest stage, where maps lie.
    """

    def __init__(self, network: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        self.network: Any = network  # timm's attributes stand in no common type
        self.deepest = nn.Identity()  # gives the deepest stage: where post-hoc methods look, which know one map only
        self.stages = anatomy.stages
        self.num_features = anatomy.num_features
        self.reduction = anatomy.reduction
        self.grid = anatomy.grid
        self.is_channels_last = anatomy.is_channels_last
        self._taps = anatomy.taps
        self._unused = anatomy.unused

    @property
    def head_features(self) -> int | list[int]:
        """`num_features` as the head's constructor takes them: one number a stage, where there are several."""
        return [stage.num_features for stage in self.stages] if len(self.stages) > 1 else self.num_features

    def forward(self, images: Tensor) -> Features:
        """Features `b d h w` of images `b c H W`, with h ≈ H / `reduction`; a list, shallow to deep, of several stages.

        All come from one pass, which ends at the deepest of them.
        """
        features = features_at(self.network, images, self._taps)
        last = features[-1].permute(0, 3, 1, 2) if self.is_channels_last else features[-1]
        last = self.deepest(last)
        return [*features[:-1], last] if len(features) > 1 else last

    def classify(self, features: Tensor) -> Tensor:
        """Logits `b c` of timm's own classifier for features `b d h w`."""
        return self.network.forward_head(features.permute(0, 2, 3, 1) if self.is_channels_last else features)

    @torch.no_grad()
    def classifier_steps(self) -> list[Step]:
        """Timm's classifier as steps from its features to its logits, with its weights.

        Reading proves nothing: random features go through both.

        Raises:
            NoSteps: Something stands between that no step stands for.
        """
        steps = read_classifier(self.network)
        weight = steps[-1].get_parameter("weight")
        generator = torch.Generator(weight.device).manual_seed(0)
        features = weight.new_empty(2, self.network.num_features, 9, 8).normal_(generator=generator)
        with eval_mode(self.network):
            logits = self.classify(features)
        ours = nn.Sequential(*steps)(features).flatten(1)
        if ours.shape != logits.shape or (ours - logits).abs().max() > 1e-4 * logits.abs().max():
            raise NoSteps("something that these steps miss")
        return steps

    def drop_unused(self) -> None:
        """Remove what these features do not need, timm's head and later stages: it would be saved and never train."""
        self.network.reset_classifier(0)
        for name in self._unused:
            parent, _, child = name.rpartition(".")
            setattr(self.network.get_submodule(parent), child, nn.Identity())


class Network(NamedTuple):
    """A timm model, and what rebuilds it."""

    module: Any  # nn.Module; timm's attributes stand in no common type
    anatomy: Anatomy
    architecture: str  # timm's name without tag
    model_args: dict[str, Any]  # beside num_classes, in_chans and output_stride
    pretrained_cfg: dict[str, Any]
    output_stride: int | None


def create_network(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    output_stride: int | None = None,
    stages: tuple[int, ...] = (-1,),
    **model_args: Any,
) -> Network:
    """Timm's model `name`, which may carry a tag or a source ("resnet50.a1_in1k", "local-dir:PATH", "hf-hub:ID").

    `stages`: what its `Backbone` gives, counted from the end (see `examine`).

    Raises:
        InputError: No such name, tag or file; no CNN; no such stage; no pretrained weights; arguments or weights that
            do not fit.
    """
    architecture, pretrained_cfg, model_args = _resolve(name, model_args)
    saved_classes, saved_stride = (model_args.pop(name, None) for name in ("num_classes", "output_stride"))
    model_args.pop("in_chans", None)
    output_stride = saved_stride if output_stride is None else output_stride
    if pretrained and not any(pretrained_cfg.get(source) for source in ("url", "file", "hf_hub_id", "state_dict")):
        raise InputError(f"timm has no pretrained weights for {name!r}")
    shape_args: dict[str, Any] = {"in_chans": in_chans} | (
        {} if output_stride is None else {"output_stride": output_stride}
    )
    anatomy = _examined(architecture, stages, shape_args | model_args, output_stride)
    if num_classes is not None or saved_classes is not None:
        shape_args["num_classes"] = saved_classes if num_classes is None else num_classes
    try:
        module = timm.create_model(
            architecture, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **shape_args, **model_args
        )
    except (RuntimeError, OSError, KeyError, SafetensorError) as error:
        raise InputError(f"the weights of {name!r} cannot be loaded: {_first_line(error)}") from error
    return Network(module, anatomy, architecture, model_args, pretrained_cfg, output_stride)


def _resolve(name: str, model_args: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Architecture, pretrained_cfg and all arguments of a timm name; those that its source saved are the defaults."""
    if ":" not in name and "/" not in name:
        architecture, _, tag = name.partition(".")
        if not is_model(architecture):
            raise unknown_name("backbone", architecture, timm.list_models())
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        if tag and tag not in tags:
            raise unknown_name(f"pretrained tag of {architecture}", tag, tags)
    try:
        resolved = resolve_model_input_args(name, **model_args)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise InputError(f"backbone {name!r} cannot be opened: {_first_line(error)}") from error
    resolved.pop("pretrained_model_args", None)
    return resolved.pop("model_name"), resolved.pop("pretrained_cfg"), resolved


def _examined(
    architecture: str, stages: tuple[int, ...], model_args: dict[str, Any], output_stride: int | None
) -> Anatomy:
    try:
        examine(architecture)  # first as it is: what is no CNN has no output stride either, and that says less
        return examine(architecture, stages, **model_args)
    except NotConvolutional as error:
        raise InputError(f"{architecture} is no CNN: its features {error}; {_nearest_cnns(architecture)}") from None
    except NoSuchStage as error:
        raise InputError(f"{architecture} {error}, so the head cannot have stage {min(stages)}") from None
    except (TypeError, AssertionError, NotImplementedError, ValueError) as error:
        if output_stride is not None:
            raise InputError(f"timm cannot build {architecture} with output_stride={output_stride}") from error
        raise InputError(f"timm cannot build {architecture} with {model_args}: {_first_line(error)}") from error


def _nearest_cnns(name: str) -> str:
    candidates = get_close_matches(name, timm.list_models(), n=12, cutoff=0.3)
    near = [candidate for candidate in candidates if is_convolutional(candidate)][:3]
    return f"the nearest CNNs are {', '.join(near or ['resnet50', 'convnext_tiny', 'efficientnet_b0'])}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
