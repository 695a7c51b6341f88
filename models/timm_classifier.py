"""Reads what timm does between its feature map and its logits as steps of ours, which explain themselves.

`forward_head` is traced once, by torch.fx, layer by layer; each layer that a step stands for becomes that step, with
timm's weights. What is affine is multiplied together (batch norms in eval mode, scales, RepViT's two classifiers), so
few steps are left. A layer that no step stands for is named, and nothing is taken over.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from timm import layers
from timm.models.hgnet import LearnableAffineBlock
from timm.models.vgg import ConvMlp
from torch import Tensor, fx, nn

from ..heads.steps import Activation, Linear, Norm, Pool, Step, Window
from .eval_mode import eval_mode


class NoSteps(ValueError):
    """Something stands between features and logits that no step stands for; the message names it."""


class Scale(NamedTuple):
    """x → scale · x + shift, channel by channel (d or 1 each): what batch norms and learned scales do."""

    scale: Tensor
    shift: Tensor


Part: TypeAlias = Step | Scale
Parts: TypeAlias = list[Part]


@torch.no_grad()
def read_classifier(network: nn.Module) -> list[Step]:
    """The steps from what `network.forward_features` gives, as `b d h w`, to its logits, the last one linear.

    Raises:
        NoSteps: There are no such steps.
    """
    try:
        with eval_mode(network):
            traced = _Layers().trace(_ForwardHead(network))
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise NoSteps(f"{type(network).__name__}.forward_head, which cannot be traced") from error
    steps: list[Step] = []
    for part in _read(traced, network):
        if isinstance(part, Scale):
            raise NoSteps("a scale without a linear layer beside it")
        steps.append(part)
    if not steps or not isinstance(steps[-1], Linear):
        raise NoSteps("what is no linear layer, at the end")
    return steps


class _ForwardHead(nn.Module):
    """`forward_head` as a forward, which alone can be traced."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the features."""
        return self.network.forward_head(features)


class _Layers(fx.Tracer):
    """Follows modules down to those that `_MODULES` knows, or that hold nothing further."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether to take `module` as a whole."""
        return type(module) in _MODULES or not list(module.children())


def _read(graph: fx.Graph, network: nn.Module) -> Parts:
    """The parts from the graph's input to its output; each tensor on the way is the list of parts that make it."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        arguments = fx.map_arg(node.args, values.__getitem__)
        name = str(node.target).removeprefix("network.")
        match node.op:
            case "placeholder":
                values[node] = []
            case "call_module":
                values[node] = _joined(arguments[0], _of_module(network.get_submodule(name), name))
            case "call_function" | "call_method":
                values[node] = _of_function(node.target, arguments, node.kwargs)
            case "output":
                return arguments[0]
            case _:
                raise NoSteps(f"the parameter {name}, outside any layer")
    raise NoSteps("nothing")


def _of_module(module: nn.Module, name: str) -> Parts:
    read = _MODULES.get(type(module))
    if read is None:
        raise NoSteps(f"{type(module).__name__} {name}")
    return read(module)


def _of_function(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Parts:
    """What a call outside any layer makes of parts (lists) and numbers."""
    name = function if isinstance(function, str) else function.__name__
    first, *rest = arguments
    if name in ("flatten", "dropout"):
        return first
    if name == "mean" and (rest[0] if rest else options.get("dim")) in ((1, 2), (2, 3), [2, 3], (-2, -1)):
        return [*first, _pool("avg")]
    if name in ("square", "relu"):
        return [*first, Activation(0, function=name)]
    if name == "add" and isinstance(first, list) and isinstance(rest[0], list):
        return _sum(first, rest[0])
    if name == "truediv" and isinstance(first, list) and isinstance(rest[0], int | float):
        return _joined(first, [Scale(torch.tensor([1 / rest[0]]), torch.zeros(1))])
    raise NoSteps(f"the operation {name}")


def _sum(one: Parts, other: Parts) -> Parts:
    """Two branches that differ in their last, linear part."""
    *trunk, first = one
    *other_trunk, second = other
    is_shared = len(trunk) == len(other_trunk) and all(a is b for a, b in zip(trunk, other_trunk, strict=True))
    if not is_shared or not isinstance(first, Linear) or not isinstance(second, Linear):
        raise NoSteps("a sum of branches that are not linear")
    return [*trunk, _linear(first.weight + second.weight, first.bias + second.bias)]


def _joined(parts: Parts, more: Parts) -> Parts:
    """One after the other; what is affine on both sides of the seam becomes one part."""
    joined = list(parts)
    for part in more:
        product = _product(joined[-1], part) if joined else None
        joined = [*joined, part] if product is None else [*joined[:-1], product]
    return joined


def _product(first: Part, then: Part) -> Part | None:
    """Two affine parts as one; None where they are not both affine."""
    match first, then:
        case Scale(), Scale():
            return Scale(then.scale * first.scale, then.scale * first.shift + then.shift)
        case Linear(), Scale():
            return _linear(then.scale[:, None] * first.weight, then.scale * first.bias + then.shift)
        case Scale(), Linear():
            return _linear(
                then.weight * first.scale, then.weight @ first.shift.expand(then.weight.shape[1]) + then.bias
            )
        case Linear(), Linear():
            return _linear(then.weight @ first.weight, then.weight @ first.bias + then.bias)
    return None


def _linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The step with these weights (e d, or e d 1 1) and bias (e)."""
    weight = weight.flatten(1)
    step = Linear(weight.shape[1], out_features=weight.shape[0]).to(weight)
    step.weight.copy_(weight)
    if bias is not None:
        step.bias.copy_(bias)
    return step


def _pool(pool_type: str) -> Pool:
    return Pool(1, pool_type=pool_type)  # channels matter to what follows alone, whose weights are there


def _of_pool(module: Any) -> Parts:
    return [_pool(module.pool_type.replace("fast", "") or "avg")] if module.pool_type else []


def _of_convolution(module: nn.Conv2d) -> Parts:
    if module.kernel_size != (1, 1) or module.groups != 1 or module.stride != (1, 1) or module.padding != (0, 0):
        raise NoSteps(f"a convolution with a window of {module.kernel_size}")
    return [_linear(module.weight, module.bias)]


def _of_linear(module: nn.Linear) -> Parts:
    return [_linear(module.weight, module.bias)]


def _of_window(module: Any) -> Parts:
    first = module.fc1
    window = Window(first.in_channels, out_features=first.out_channels, kernel_size=first.kernel_size[0])
    window.to(first.weight).load_state_dict(first.state_dict())
    act1, act2 = _of_module(module.act1, "act1"), _of_module(module.act2, "act2")
    return [window, *act1, _linear(module.fc2.weight, module.fc2.bias), *act2]


def _of_batch_norm(module: Any) -> Parts:
    scale = (module.running_var + module.eps).rsqrt()
    shift = -module.running_mean * scale
    if module.affine:
        scale, shift = scale * module.weight, shift * module.weight + module.bias
    return [Scale(scale, shift), *(_of_module(module.act, "act") if isinstance(module, layers.BatchNormAct2d) else [])]


def _norm(norm_type: str) -> Callable[[Any], Parts]:
    def read(module: Any) -> Parts:
        (channels,) = module.normalized_shape
        step = Norm(channels, norm_type=norm_type, eps=module.eps)
        for name in ("weight", "bias"):
            if (value := getattr(module, name, None)) is not None:
                getattr(step.to(value), name).copy_(value)
        return [step]

    return read


def _activation(function: str) -> Callable[[Any], Parts]:
    return lambda module: [Activation(0, function=function)]


def _nothing(module: nn.Module) -> Parts:
    return []


_MODULES: dict[type[nn.Module], Callable[[Any], Parts]] = {
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Flatten: _nothing,
    layers.SelectAdaptivePool2d: _of_pool,
    nn.Linear: _of_linear,
    layers.Linear: _of_linear,
    nn.Conv2d: _of_convolution,
    ConvMlp: _of_window,
    nn.BatchNorm1d: _of_batch_norm,
    nn.BatchNorm2d: _of_batch_norm,
    layers.BatchNormAct2d: _of_batch_norm,
    LearnableAffineBlock: lambda module: [Scale(module.scale, module.bias)],
    nn.LayerNorm: _norm("layer"),
    layers.LayerNorm: _norm("layer"),
    layers.LayerNorm2d: _norm("layer"),
    layers.RmsNorm: _norm("rms"),
    layers.RmsNorm2d: _norm("rms"),
    layers.SimpleNorm: _norm("simple"),
    layers.SimpleNorm2d: _norm("simple"),
    nn.ReLU: _activation("relu"),
    nn.Hardswish: _activation("hardswish"),
    nn.SiLU: _activation("silu"),
    nn.GELU: _activation("gelu"),
    layers.GELU: _activation("gelu"),
    layers.GELUTanh: _activation("tanh_gelu"),
}
