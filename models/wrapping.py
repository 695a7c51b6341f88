"""A classifier that somebody trained with timm, a live model or a file of its weights, as one that explains."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from timm.models import get_model_args, get_model_input_config, is_model, load_state_dict
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..common.errors import InputError
from .backbone import Backbone, Network, create_network
from .checkpoint import check_fit
from .class_names import timm_class_names
from .classifier import ImageClassifier
from .config import BLACK_BOX, BackboneWeights, ModelConfig
from .factory import NEW_ONE, assemble, stages_of, steps_for
from .preprocessing import Preprocessing


class _Source(NamedTuple):
    """What a wrapped model is made of."""

    name: str  # timm's, with tag where one is given
    model_args: dict[str, Any]  # timm's, all but num_classes
    state: dict[str, Tensor]
    where: str  # what errors call it
    num_classes: int | None = None  # default: as many as the classifier's weight says
    pretrained_cfg: dict[str, Any] | None = None  # default: what timm states for `name`
    live: Any = None  # a copy of the user's model, in eval mode; timm's attributes stand in no common type

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.state.values())).device


def wrap(
    model: nn.Module | str | os.PathLike[str],
    head: str = "cam",
    *,
    architecture: str | None = None,
    backbone_kwargs: dict[str, Any] | None = None,
    class_names: tuple[str, ...] | list[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> ImageClassifier:
    """A fine-tuned timm classifier as an explaining model: the same logits, to float rounding, and exact evidence.

    The weights are copied: `model` stays as it is, and training one never changes the other. The result is in eval
    mode, in float32, on the same device, and is saved and loaded like any other.

    Args:
        model: What `timm.create_model` made (also inside DataParallel, `torch.compile` or timm's EMA), or a file of its
            weights: safetensors, or what `torch.save` or timm's training script wrote, EMA weights first. A pickle
            that holds more than weights is not opened.
        head: A head that can start as timm's classifier, or "black_box", which explains nothing.
        architecture: For a file: timm's name, whose tag ("resnet50.a1_in1k") says what the images went through.
        backbone_kwargs: For a file: what else `timm.create_model` was given (in_chans, output_stride, global_pool, …).
        class_names: One a class; default: timm's `label_names`, or ImageNet's where the number of classes is still that
            of timm's ImageNet weights (a model of 1,000 other classes needs them given); else numbers.
        preprocessing: What the images went through; default: what timm states for these weights.

    Raises:
        InputError: No timm model, no CNN, no file of weights, or one without a classifier or of another architecture;
            a live model that was changed after timm built it, so that no checkpoint could rebuild it; or a classifier
            that is no chain of known steps (the sentence names what stands between), or that `head` cannot start as.
    """
    if not isinstance(model, nn.Module):
        source = _of_file(Path(model).expanduser(), architecture, backbone_kwargs or {})
    elif architecture is not None or backbone_kwargs is not None:
        raise InputError("architecture and backbone_kwargs belong to a file of weights: a live model knows its own")
    else:
        source = _of_live(model)
    network = _network(source, head)
    config = _config(source, network, head, class_names, preprocessing)
    sides = config.preprocessing.input_size[1:]
    noise = torch.randn(1, config.in_chans, *sides, generator=torch.Generator().manual_seed(0))
    logits = _logits(network.module.eval(), noise)
    if source.live is not None:
        _require_unchanged(source, logits, noise)
    wrapped = assemble(network, config, takes_over_classifier=True).to(source.device).eval()
    if not _agree(_logits(wrapped.as_logits(), noise), logits, 1e-5):
        raise InputError(f"head {head!r} starts near timm's classifier, but not as it: train it from create_model")
    return wrapped


def _of_live(model: nn.Module) -> _Source:
    """From the user's own model, which is only read.

    Raises:
        InputError: timm did not build it, it has no classifier, or an argument that no config.json can hold did.
    """
    model = unwrap_model(model)
    if isinstance(model, ImageClassifier):
        raise InputError(f"this model has a head of glasszoo already: {model.config.head!r}")
    pretrained_cfg = getattr(model, "pretrained_cfg", None) or {}
    architecture = pretrained_cfg.get("architecture")
    if not architecture or not is_model(architecture):
        raise InputError(
            f"timm did not build this {type(model).__name__}: wrap takes what timm.create_model returns, whose "
            "pretrained_cfg names its architecture"
        )
    classifier = getattr(model, "get_classifier", nn.Identity)()
    if isinstance(classifier, nn.Identity):
        raise InputError(f"this {type(model).__name__} has no classifier: {NEW_ONE}")
    for name, value in (args := get_model_args(model)).items():
        if not isinstance(value, str | int | float | bool | list | tuple | dict | None):
            raise InputError(f"the model was built with {name}={value!r}, which no config.json can hold")
    args["in_chans"] = get_model_input_config(model)["input_size"][0]
    num_classes = args.pop("num_classes", None)
    if isinstance(classifier, nn.Linear):
        num_classes = classifier.out_features  # timm does not notice another one put in by hand
    if args.get("global_pool") == "avg":
        del args["global_pool"]  # the default, which not every architecture takes by name
    live = deepcopy(model).eval()
    where = f"the model, a {architecture},"
    return _Source(architecture, args, live.state_dict(), where, num_classes, pretrained_cfg, live)


def _of_file(path: Path, architecture: str | None, model_args: dict[str, Any]) -> _Source:
    """From a file of weights.

    Raises:
        InputError: No architecture is named, or `path` is no file of weights.
    """
    if architecture is None:
        raise InputError(f'{path} does not say what it holds the weights of: give architecture="resnet50"')
    if path.is_dir():
        raise InputError(
            f"{path} is a folder: create_model('local-dir:{path}', pretrained=True) takes over what timm saved there"
        )
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        state = load_state_dict(str(path))
    except RuntimeError as error:
        if "weights_only" not in str(error):
            raise InputError(f"{path} is truncated or no file of weights") from error
        raise InputError(
            f"{path} holds more than weights, or is broken; a whole model is never opened, since a pickle can run any "
            "code: save model.state_dict() instead"
        ) from error
    except (SafetensorError, OSError, EOFError, AttributeError, TypeError, ValueError, LookupError) as error:
        raise InputError(f"{path} is truncated or no file of weights") from error
    if not all(isinstance(value, Tensor) for value in state.values()):
        strange = next(name for name, value in state.items() if not isinstance(value, Tensor))
        raise InputError(f"{path} holds {strange!r}, which is no weight: a state dict expected")
    return _Source(architecture, model_args, state, str(path))


def _network(source: _Source, head: str) -> Network:
    """Timm's network as `source` describes it, with its weights and a classifier of its size.

    Raises:
        InputError: It cannot be built, `head` cannot take over its classifier, or the weights do not fit it.
    """
    args = dict(source.model_args)
    network = create_network(
        source.name,
        num_classes=source.num_classes,
        in_chans=args.pop("in_chans", 3),
        output_stride=args.pop("output_stride", None),
        stages=stages_of(head, {}),
        **args,
    )
    if head != BLACK_BOX:  # before the weights are looked at: those of a classifier of another kind never fit
        backbone = Backbone(network.module if source.live is None else source.live, network.anatomy)
        steps_for(head, network.architecture, backbone)
    module = network.module
    if source.num_classes is None:
        _resize_classifier(module, source)
    expected = module.state_dict()
    # What counts batches came to PyTorch late and changes no logit.
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    check_fit(expected, counters | source.state, source.where, network.architecture)
    module.load_state_dict(counters | source.state)
    module.to(source.device)
    return network


def _config(
    source: _Source,
    network: Network,
    head: str,
    class_names: tuple[str, ...] | list[str] | None,
    preprocessing: Preprocessing | None,
) -> ModelConfig:
    in_chans = source.model_args.get("in_chans", 3)
    pretrained_cfg = source.pretrained_cfg or network.pretrained_cfg
    names = class_names or timm_class_names(pretrained_cfg, network.module.num_classes)
    return ModelConfig(
        architecture=network.architecture,
        num_classes=network.module.num_classes,
        head=head,
        in_chans=in_chans,
        output_stride=network.output_stride,
        backbone_kwargs=network.model_args,
        class_names=tuple(names) if names else None,
        preprocessing=preprocessing or Preprocessing.from_timm(pretrained_cfg, in_chans),
        backbone_weights=BackboneWeights(f"{network.architecture}, trained elsewhere"),
    )


def _resize_classifier(module: Any, source: _Source) -> None:
    """Give timm's network as many classes as the weights have."""
    classifier = module.get_classifier()
    name = next((name for name, child in module.named_modules() if child is classifier), "")
    weight = source.state.get(f"{name}.weight")
    if weight is None:
        raise InputError(f"{source.where} holds no classifier of {source.name} ({name}.weight is missing): {NEW_ONE}")
    if len(weight) != module.num_classes:
        module.reset_classifier(len(weight))


def _require_unchanged(source: _Source, logits: Tensor, noise: Tensor) -> None:
    """Hold `logits`, of timm's network with the weights of `source`, against those of the live model, both of `noise`.

    Raises:
        InputError: They differ: what was changed in the model is none of its weights.
    """
    dtype = next(source.live.parameters()).dtype
    tolerance = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
    if not _agree(_logits(source.live, noise), logits, tolerance):
        raise InputError(
            f"the model computes something else than timm's {source.name} with its weights: it was changed after timm "
            "built it, so no checkpoint could rebuild it"
        )


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return model(images.to(next(model.parameters()))).float()


def _agree(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())
