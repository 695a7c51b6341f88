"""Layer-wise relevance propagation by zennit, for any timm CNN that it can be said of what each step does.

zennit has rules for modules. What timm's blocks do between modules (residual sums, gates of squeeze-and-excitation,
layer scales, functional activations) is met where it is called, with a rule that conserves relevance; so no block needs
a canonizer of its own. Bach et al., "On Pixel-Wise Explanations by Layer-Wise Relevance Propagation", PLOS ONE 2015;
Montavon et al., "Layer-Wise Relevance Propagation: An Overview", 2019.

Rules: convolutions z⁺, the first one flat, linear layers ε, biases absorb nothing; norms and activations pass relevance
on as it is; a sum shares it in proportion to the absolute values of its terms; a product gives it to the features, and
the gate or scale counts as a constant. At the head's input the relevance is feature × gradient: LRP-0, exact where the
head is linear in its features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..common.errors import InputError
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .maps import MapMethod
from .posthoc import ACTIVATIONS, deepest, features_and_output, prepared

NEEDS = "zennit"
_PASSING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_SUMS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
_PRODUCTS = (torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__)
_MEANS = (functional.avg_pool2d, functional.adaptive_avg_pool2d)
_ELEMENTWISE = (
    torch.relu, Tensor.relu, Tensor.relu_, functional.relu, functional.relu6, functional.gelu, functional.silu,
    functional.hardswish, functional.leaky_relu,
)  # fmt: skip
_WITHOUT_RULE = (
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.einsum, torch.bmm, functional.softmax, Tensor.softmax,
    torch.softmax, functional.scaled_dot_product_attention,
)  # fmt: skip


def lrp(model: ImageClassifier) -> MapMethod:
    """Relevance of the pixels, summed over channels: what of the logit goes back to them.

    Raises:
        InputError: The network does something that no rule is known for; what is named.
    """
    _check(model)

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        with prepared(model):
            return relevance(model, images.detach(), classes).sum(1)

    def owed(images: Tensor, classes: Tensor) -> Tensor:
        with prepared(model):
            return at_features(model, images, classes).flatten(1).sum(1)

    return MapMethod("lrp", "post-hoc", explain, completes=True, owed=owed)


METHODS: dict[str, Callable[[ImageClassifier], MapMethod]] = {"lrp": lrp}


def relevance(model: ImageClassifier, images: Tensor, classes: Tensor) -> Tensor:
    """The relevance of each value of `images` for the logits of `classes`: `b c h w`. Gradients must be enabled.

    Its sum is that of `at_features`, as far as rules conserve it.
    """
    start = at_features(model, images, classes)
    given = images.clone().requires_grad_()
    with _composite().context(model.backbone.network), _Rules():
        features = model.backbone(given)
        return torch.autograd.grad(features, given, grad_outputs=start)[0].detach()


def at_features(model: ImageClassifier, images: Tensor, classes: Tensor) -> Tensor:
    """The relevance where the head begins, `b d h w`: feature × gradient. Gradients must be enabled.

    Where the head is linear in its features, its sum is the logit less the bias.
    """
    features, output = features_and_output(model, images.clone().requires_grad_())
    seen = deepest(features)
    (gradient,) = torch.autograd.grad(output.logits.gather(1, classes[:, None]).sum(), seen)
    return (seen * gradient).detach()


class _Shared(torch.autograd.Function):
    """A sum whose terms share the relevance in proportion to their absolute values."""

    @staticmethod
    def forward(context: Any, one: Tensor, two: Tensor) -> Tensor:
        context.save_for_backward(one, two)
        return one + two

    @staticmethod
    def backward(context: Any, *relevance: Tensor) -> tuple[Tensor, Tensor]:
        one, two = context.saved_tensors
        share = one.abs() / (one.abs() + two.abs()).clamp(min=1e-12)
        # Where both terms are 0 nothing is to be shared, but what there is must not be lost.
        share = share.where((one != 0) | (two != 0), 0.5)
        return relevance[0] * share, relevance[0] * (1 - share)


class _Kept(torch.autograd.Function):
    """Any value in the shape of `features`, which get its relevance as it is."""

    @staticmethod
    def forward(context: Any, features: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, *relevance: Tensor) -> tuple[Tensor, None]:
        return relevance[0], None


class _Averaged(torch.autograd.Function):
    """A mean whose values share the relevance in proportion to their sizes, as zennit's rule for modules has it."""

    @staticmethod
    def forward(context: Any, features: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
        context.save_for_backward(features)
        context.mean = mean
        return mean(features)

    @staticmethod
    def backward(context: Any, *relevance: Tensor) -> tuple[Tensor, None]:
        (features,) = context.saved_tensors
        with torch.enable_grad():
            sizes = features.abs().requires_grad_()
            means = context.mean(sizes)
            (shares,) = torch.autograd.grad(means, sizes, grad_outputs=relevance[0] / means.clamp(min=1e-12))
        return sizes.detach() * shares, None


class _Rules(TorchFunctionMode):
    """Rules for what is called between modules."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SUMS and len(args) == 2 and not kwargs and _are_features(*args):
            return _Shared.apply(*args)
        if func in _MEANS and args[0].requires_grad:
            return _Averaged.apply(args[0], lambda features: func(features, *args[1:], **kwargs))
        value = func(*args, **kwargs)
        if func in (*_SUMS, *_PRODUCTS, *_ELEMENTWISE):
            features = next((term for term in args if isinstance(term, Tensor) and _leads_back(term, value)), None)
            if features is not None:
                return _Kept.apply(features, value.detach())
        return value


class _Forbidden(TorchFunctionMode):
    """Notes the functions that no rule is known for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WITHOUT_RULE:
            self.found.add(func.__name__.strip("_"))
        return func(*args, **(kwargs or {}))


def _are_features(one: Any, two: Any) -> bool:
    return all(isinstance(term, Tensor) and term.requires_grad for term in (one, two)) and one.shape == two.shape


def _leads_back(term: Tensor, value: Tensor) -> bool:
    return term.requires_grad and term.shape == value.shape


def _composite() -> Any:
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.core import Composite
    from zennit.rules import Epsilon, Flat, Norm, Pass
    from zennit.types import AvgPool

    rules = {"flat": Flat(), "z+": _positive_rule(), "epsilon": Epsilon(zero_params="bias")}

    def rule(context: dict[str, Any], name: str, module: nn.Module) -> Any:
        if isinstance(module, nn.Conv2d):
            is_first = not context.setdefault("has_first", False)
            context["has_first"] = True
            return rules["flat" if is_first else "z+"]
        if isinstance(module, nn.Linear):
            return rules["epsilon"]
        if isinstance(module, AvgPool):
            return Norm()
        is_passing = isinstance(module, _PASSING) or type(module).__module__ in ACTIVATIONS
        return Pass() if is_passing else None

    return Composite(module_map=rule, canonizers=[SequentialMergeBatchNorm()])


def _positive_rule() -> Any:
    """The z⁺ rule, and what is done where it has nothing to go by.

    An output to which no input contributes positively, as a bias makes many in MobileNets, shares its relevance in
    proportion to absolute contributions, and evenly over its field if all of these are zero.
    """
    from zennit.core import BasicHook, ParamMod

    def clamped(low: float | None, high: float | None) -> ParamMod:
        return ParamMod(lambda weight, name: weight.clamp(low, high), zero_params="bias", require_params=False)

    def mapped(relevance: Tensor, outputs: list[Tensor]) -> list[Tensor]:
        positive, absolute, field = outputs[0] + outputs[1], outputs[2], outputs[3]
        has_positive = positive > 1e-6 * absolute + 1e-30
        has_any = absolute > 1e-30
        by_positive = torch.where(has_positive, relevance / positive, 0)
        by_absolute = torch.where(~has_positive & has_any, relevance / absolute, 0)
        evenly = torch.where(~has_positive & ~has_any, relevance / field, 0)
        return [by_positive, by_positive, by_absolute, evenly]

    return BasicHook(
        input_modifiers=[lambda x: x.clamp(min=0), lambda x: x.clamp(max=0), torch.abs, torch.ones_like],
        param_modifiers=[
            clamped(0, None),
            clamped(None, 0),
            ParamMod(lambda weight, name: weight.abs(), zero_params="bias", require_params=False),
            ParamMod(lambda weight, name: torch.ones_like(weight), zero_params="bias", require_params=False),
        ],
        gradient_mapper=mapped,
    )


def _check(model: ImageClassifier) -> None:
    """Refuse networks that no rules fit.

    Raises:
        InputError: Attention, or convolutions whose weights are standardised as they run.
    """
    name = model.config.architecture
    if len(model.backbone.stages) > 1:
        raise InputError(f"lrp starts at one feature map, but the head {model.config.head!r} looks at several")
    network = model.backbone.network
    unlike = {type(module).__name__ for module in network.modules()
              if isinstance(module, nn.Conv2d) and "Std" in type(module).__name__}  # fmt: skip
    channels, *size = model.config.preprocessing.input_size
    parameter = next(network.parameters())
    with eval_mode(model), _Forbidden() as forbidden, torch.no_grad():
        model.backbone(torch.zeros(1, channels, *size).to(parameter))
    if found := sorted(unlike | forbidden.found):
        raise InputError(f"lrp has no rule for {', '.join(found)} in {name}")
