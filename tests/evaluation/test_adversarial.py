"""Attacks on predictions and explanations: exact on models that are linear, within bounds and held on real ones."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.loading import Loader
from glasszoo.evaluation.adversarial import Budget, attack_explanation, attack_prediction, map_change, noise
from glasszoo.evaluation.differentiable_maps import DIFFERENTIABLE, differentiable, smooth_rectifiers
from glasszoo.evaluation.maps import MapMethod
from glasszoo.evaluation.methods import map_method
from glasszoo.evaluation.posthoc import prepared
from glasszoo.evaluation.projected_gradient import Ball, projected_gradient
from glasszoo.evaluation.robustness import ATTACKS, Robustness, judge_robustness, moved
from glasszoo.heads import Explained, create_head
from glasszoo.models import BLACK_BOX, ImageClassifier, Preprocessing, open_model

PLAIN = Preprocessing((3, 8, 8), mean=(0.2, 0.3, 0.25), std=(0.25, 0.2, 0.5))
WELL = Budget(epsilon=8, step=2, iterations=8)


class Flat(nn.Module):
    """A 1 × 1 convolution and a CAM head: a linear function of every pixel, on the grid of the image."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.config = SimpleNamespace(preprocessing=PLAIN)
        self.contract = glasszoo.heads.Contract.LINEAR
        self.conv = nn.Conv2d(3, 5, 1, bias=False).double()
        self.head = create_head("cam", 5, classes).double()
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)

    def forward(self, images: Tensor, explain: Any = 1) -> Explained:
        return self.head.forward_with_losses(self.conv(images), None, explain)[0]

    def weights(self) -> Tensor:
        """What each channel of a pixel counts for each class, `k c`."""
        channels = torch.eye(3, dtype=torch.float64)[..., None, None].expand(-1, -1, 8, 8)
        at_zero = self(torch.zeros(1, 3, 8, 8).double(), 0).logits
        return ((self(channels, 0).logits - at_zero) / 64).detach().T


def flat() -> tuple[Flat, ImageClassifier]:
    model = Flat().eval()
    return model, cast(ImageClassifier, model)


def greyish(*, has_ends: bool) -> Tensor:
    """Four pictures whose colours are in the middle of the range, and if asked at its ends; normalised."""
    pixels = 0.4 + 0.2 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    if has_ends:
        pixels[:, :, 0], pixels[:, :, 1] = 0, 1
    mean, std = (torch.tensor(values)[:, None, None] for values in (PLAIN.mean, PLAIN.std))
    return (pixels - mean) / std


def as_pixels(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Values in 0..255."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return 255 * (images * std + mean)


def test_steps_by_hand() -> None:
    images, slope = torch.zeros(1, 1, 2, 2), torch.tensor([[[[3.0, -0.5], [0.0, 1.0]]]])
    is_free = torch.tensor([[[[True, True], [True, False]]]])
    ball = Ball(torch.tensor(0.25))
    how: dict[str, Any] = {"step": 0.1, "is_free": is_free}

    def linear(at: Tensor) -> Tensor:
        return (at * slope).sum((1, 2, 3))

    for iterations, reached in ((0, 0.0), (1, 0.1), (2, 0.2), (5, 0.25)):
        found = projected_gradient(linear, images, ball, iterations=iterations, **how)
        torch.testing.assert_close(found, torch.tensor([[[[reached, -reached], [0.0, 0.0]]]]))
    bounded = Ball(torch.tensor(0.25), lowest=torch.tensor(-0.1), highest=torch.tensor(0.2))
    found = projected_gradient(linear, images, bounded, step=0.1, iterations=9)
    torch.testing.assert_close(found, torch.tensor([[[[0.2, -0.1], [0.0, 0.2]]]]))


@pytest.mark.parametrize("is_targeted", [False, True])
def test_a_linear_model_is_attacked_by_the_analytic_step(is_targeted: bool) -> None:
    """Two classes: the cross-entropy of one grows along the weights of the other less its own, in every pixel."""
    plain, model = flat()
    images, classes = greyish(has_ends=True), torch.tensor([0, 1, 0, 1])
    found = attack_prediction(
        model, images, classes, torch.arange(4), Budget(epsilon=4, step=1, iterations=9), is_targeted=is_targeted
    )
    weights = plain.weights()
    away = (weights[1 - classes] - weights[classes]).sign() * (-1 if is_targeted else 1)
    expected = (as_pixels(images, PLAIN) + 4 * away[:, :, None, None]).clamp(0, 255)
    torch.testing.assert_close(as_pixels(found, PLAIN), expected, atol=1e-4, rtol=0)


def test_a_linear_map_is_emptied_where_it_was_highest() -> None:
    """By the top-k attack: the highest tenth falls by ε times the weights' absolute sum, all other cells rise by it."""
    plain, model = flat()
    with torch.no_grad():  # all evidence of class 0 is positive; class 1 has none to lose
        for parameter in plain.parameters():
            parameter.abs_()
        for parameter in plain.head.parameters():
            parameter[1] = 0
    images, classes = greyish(has_ends=False), torch.zeros(4).long()
    assert (model(images, classes).maps > 0).all()
    before, offset = model(images, classes).maps[:, 0], 2 / 255
    found = attack_explanation(
        model, DIFFERENTIABLE["built-in"], images, classes, torch.arange(4),
        Budget(epsilon=2, step=2, iterations=6, change="top_k", penalty=0.0),
    )  # fmt: skip
    after = model(found, classes).maps[:, 0]
    count = round(0.1 * 64)
    is_high = before >= before.flatten(1).topk(count).values[:, -1, None, None]
    size = (plain.weights()[0] / torch.tensor(PLAIN.std)).sum() * offset
    torch.testing.assert_close(after - before, torch.where(is_high, -size, size), atol=1e-6, rtol=1e-4)


def test_change_by_hand() -> None:
    before = torch.zeros(1, 2, 10).double()
    before[0, 0, :2] = 1
    turned = before.roll(1, 2)
    assert map_change(before, before, "cosine").item() == pytest.approx(0)
    assert map_change(before, 7 * before, "cosine").item() == pytest.approx(0)
    assert map_change(before, turned, "cosine").item() == pytest.approx(0.5)
    assert map_change(before, -before, "cosine").item() == pytest.approx(2)
    for after, expected in ((before, -1.0), (3 * before, -1.0), (turned, -0.5), (-before, 1.0)):
        assert map_change(before, after, "top_k").item() == pytest.approx(expected)


def test_scores_by_hand() -> None:
    maps = torch.arange(20.0).view(1, 4, 5)
    first = torch.tensor([[2.0, 0.0]])
    same = moved(_explained(first, maps), _explained(first, 5 * maps), torch.tensor([0]))
    assert same["flipped"] == 0 and same["logit"] == 0 and same["top_tenth"] == same["rank_correlation"] == 1
    assert same["ssim"] < 1 and same["reached"].isnan().all()
    other = moved(_explained(first, maps), _explained(-first, -maps), torch.tensor([0]), torch.tensor([1]))
    assert other["flipped"] == other["reached"] == 1 and other["logit"] == -4
    assert other["probability"].item() == pytest.approx(torch.tensor([-2.0, 2.0]).sigmoid().diff().neg().item())
    assert other["top_tenth"] == 0 and other["rank_correlation"] == -1
    flat_map = moved(_explained(first, 0 * maps), _explained(first, maps), torch.tensor([0]))
    assert flat_map["top_tenth"].isnan() and flat_map["rank_correlation"].isnan()


def _explained(logits: Tensor, maps: Tensor) -> Any:
    return glasszoo.evaluation.differentiable_maps.Explanation(logits, maps)


@pytest.fixture(scope="module")
def shipped() -> ImageClassifier:
    return open_model("cam_test_byobnet.s64_critters").eval()


@pytest.fixture(scope="module")
def images(shipped: ImageClassifier) -> Tensor:
    (batch,) = Loader(create_dataset("critters", "test", count=6), shipped.preprocess, 6)
    return batch.images


@torch.no_grad()
def predicted(model: ImageClassifier, images: Tensor) -> Tensor:
    return model(images, 0).logits.argmax(1)


def test_changes_stay_within_epsilon_and_the_range_of_pixels(shipped: ImageClassifier, images: Tensor) -> None:
    preprocessing, numbers = shipped.config.preprocessing, torch.arange(6)
    ends = images.clone()
    black, white = ((value - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std) for value in (0, 1))
    ends[:, :, :9], ends[:, :, -9:] = black[:, None, None], white[:, None, None]
    before = as_pixels(ends, preprocessing)
    classes = predicted(shipped, ends)
    budget = Budget(epsilon=3, step=1, iterations=4)
    for changed in (
        noise(shipped, ends, numbers, budget),
        attack_prediction(shipped, ends, classes, numbers, budget),
        attack_explanation(shipped, DIFFERENTIABLE["built-in"], ends, classes, numbers, budget),
    ):
        after = as_pixels(changed, preprocessing)
        assert after.min() > -1e-3 and after.max() < 255 + 1e-3
        furthest = (after - before).abs().flatten(1).amax(1)
        assert (furthest < 3 + 1e-3).all() and (furthest > 2.9).all() and not changed.requires_grad


@pytest.mark.parametrize(
    ("name", "method", "factor"),
    [
        ("cam_test_byobnet.s64_critters", "built-in", 3),
        ("sparse_features_test_byobnet.s64_critters", "grad-cam", 2),
        ("protopnet_mobilenetv2_100.s64_critters", "built-in", 1),  # noise alone moves its few cells of evidence
    ],
)
def test_maps_move_further_than_under_noise_and_the_prediction_is_held(
    name: str, method: str, factor: int, images: Tensor
) -> None:
    model, numbers, explain = open_model(name).eval(), torch.arange(6), DIFFERENTIABLE[method]
    classes = predicted(model, images)
    assert (predicted(model, attack_prediction(model, images, classes, numbers, WELL)) != classes).any()
    changed = attack_explanation(model, explain, images, classes, numbers, WELL)
    assert torch.equal(predicted(model, changed), classes)
    with torch.no_grad():
        before, under_attack, under_noise = (
            explain(model, each, classes).maps for each in (images, changed, noise(model, images, numbers, WELL))
        )
    far, near = (map_change(before, after, "cosine") for after in (under_attack, under_noise))
    assert far.mean() > factor * near.mean()


def test_a_step_that_flips_the_prediction_is_taken_back(shipped: ImageClassifier, images: Tensor) -> None:
    """One step as long as ε can be, without any penalty: images that it flips stay where they were."""
    classes, numbers = predicted(shipped, images), torch.arange(6)

    def towards_another(model: ImageClassifier, images: Tensor, classes: Tensor) -> Any:
        logits = model(images, 0).logits
        wrong = logits.logsumexp(1) - logits.gather(1, classes[:, None])[:, 0]
        return _explained(logits, torch.stack([wrong, wrong.new_ones(wrong.shape)], 1)[:, None])

    budget = Budget(epsilon=16, step=16, iterations=12, penalty=0.0)
    changed = attack_explanation(shipped, towards_another, images, classes, numbers, budget)
    assert torch.equal(predicted(shipped, changed), classes)
    with torch.no_grad():
        first, last = (towards_another(shipped, each, classes).maps[:, 0, 0] for each in (images, changed))
    # As near to the border as halved steps come: the attack is not just given up.
    assert (last > first).all() and last.max() > 0.1


def test_the_model_is_left_as_it_was(shipped: ImageClassifier, images: Tensor) -> None:
    classes, numbers = predicted(shipped, images), torch.arange(6)
    state = {name: value.clone() for name, value in shipped.state_dict().items()}
    frozen = next(shipped.parameters())
    frozen.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in shipped.parameters()]
    modes = [module.training for module in shipped.modules()]
    places = [getattr(module, "inplace", None) for module in shipped.modules()]
    with torch.no_grad():
        for explain in DIFFERENTIABLE.values():
            attack_explanation(shipped, explain, images, classes, numbers, Budget(iterations=1, softplus=10.0))
    attack_prediction(shipped, images, classes, numbers, Budget(iterations=1))
    assert [parameter.requires_grad for parameter in shipped.parameters()] == wanted
    frozen.requires_grad_(True)
    assert modes == [module.training for module in shipped.modules()] and not images.requires_grad
    assert places == [getattr(module, "inplace", None) for module in shipped.modules()]
    assert all(parameter.grad is None for parameter in shipped.parameters())
    assert not shipped.backbone.deepest._forward_hooks
    assert all(torch.equal(value, state[name]) for name, value in shipped.state_dict().items())


@pytest.mark.parametrize("method", ["grad-cam", "gradient"])
def test_maps_are_those_that_are_judged_elsewhere(method: str, shipped: ImageClassifier, images: Tensor) -> None:
    classes = torch.arange(6)
    with torch.no_grad():
        found = DIFFERENTIABLE[method](shipped, images, classes)
        of_library: MapMethod = map_method(method, shipped)
        torch.testing.assert_close(found.maps, of_library.explain(images, classes, classes))
        torch.testing.assert_close(found.logits, shipped(images, 0).logits)
    assert not found.maps.requires_grad and not found.logits.requires_grad


def test_softplus_stands_for_rectifiers_and_only_inside() -> None:
    values = torch.tensor([-3.0, -0.1, 0.0, 2.0, 6.0, 9.0]).double().requires_grad_()
    modules = [nn.ReLU(), nn.ReLU6()]
    with smooth_rectifiers(4.0):
        soft = [module(values) for module in modules]
    expected = functional.softplus(values, 4.0)
    torch.testing.assert_close(soft[0], expected)
    torch.testing.assert_close(soft[1], expected - functional.softplus(values - 6, 4.0))
    for module, smooth in zip(modules, soft, strict=True):
        (slope,) = torch.autograd.grad(smooth.sum(), values, create_graph=True)
        assert (torch.autograd.grad(slope.sum(), values)[0].abs() > 0).any()  # a rectifier's is zero
        torch.testing.assert_close(module(values), values.clamp(0, 6 if isinstance(module, nn.ReLU6) else None))
    with smooth_rectifiers(None):
        assert nn.ReLU()(values).tolist() == [0, 0, 0, 2, 6, 9]


def test_softplus_lets_gradients_be_attacked(shipped: ImageClassifier, images: Tensor) -> None:
    classes, numbers, explain = predicted(shipped, images), torch.arange(6), DIFFERENTIABLE["gradient"]
    changes = []
    for softplus in (None, 10.0):
        budget = Budget(epsilon=2, step=0.5, iterations=10, softplus=softplus)
        changed = attack_explanation(shipped, explain, images, classes, numbers, budget)
        with torch.no_grad():
            before, after = (explain(shipped, each, classes).maps for each in (images, changed))
        changes.append(map_change(before, after, "cosine").mean())
    assert changes[1] > 1.3 * changes[0]


def test_grad_cam_of_a_linear_head_is_attacked_as_its_own_map(shipped: ImageClassifier, images: Tensor) -> None:
    classes = predicted(shipped, images)
    with prepared(shipped):
        at = images.clone().requires_grad_()
        slopes = [
            torch.autograd.grad(DIFFERENTIABLE[name](shipped, at, classes).maps.square().sum(), at)[0]
            for name in ("built-in", "grad-cam")
        ]
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-5, rtol=1e-3)


def test_grad_cam_is_followed_through_its_weights() -> None:
    """Where the classifier is not linear they depend on the image; finite differences, in fp64, tell the slope."""
    torch.manual_seed(0)
    model = glasszoo.create_model("test_convnext", head=BLACK_BOX, num_classes=3).eval().double()
    for parameter in model.get_classifier().parameters():
        nn.init.normal_(parameter)
    images, along = torch.randn(2, 2, 3, 64, 64).double()
    classes = torch.tensor([0, 2])

    def height(at: Tensor) -> Tensor:
        return DIFFERENTIABLE["grad-cam"](model, at, classes).maps.square().sum()

    with prepared(model):
        at = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(height(at), at)
    with torch.no_grad():
        difference = (height(images + 1e-5 * along) - height(images - 1e-5 * along)) / 2e-5
    torch.testing.assert_close((slope * along).sum(), difference, atol=0, rtol=1e-4)


def test_batches_do_not_matter(images: Tensor) -> None:
    """In fp64, where no sign of a gradient depends on rounding."""
    model = open_model("cam_test_byobnet.s64_critters").eval().double()
    images = images.double()
    classes, numbers = predicted(model, images), torch.arange(6)
    budget = Budget(epsilon=2, step=0.5, iterations=5)
    for rows in ([3], [5, 1, 2]):
        some, own = images[rows], classes[rows]
        chosen = numbers[rows]
        for whole, part in (
            (noise(model, images, numbers, budget), noise(model, some, chosen, budget)),
            (
                attack_prediction(model, images, classes, numbers, budget),
                attack_prediction(model, some, own, chosen, budget),
            ),
            (
                attack_explanation(model, DIFFERENTIABLE["grad-cam"], images, classes, numbers, budget),
                attack_explanation(model, DIFFERENTIABLE["grad-cam"], some, own, chosen, budget),
            ),
        ):
            torch.testing.assert_close(whole[rows], part)
    again = attack_prediction(model, images, classes, numbers, Budget(epsilon=2, step=0.5, iterations=1, seed=1))
    assert not torch.equal(again, attack_prediction(model, images, classes, numbers, Budget(2, 0.5, 1)))


@pytest.fixture(scope="module")
def judged(shipped: ImageClassifier) -> Robustness:
    dataset = create_dataset("critters", "test", count=9)
    budget = Budget(epsilon=4, step=1, iterations=6)
    shipped.train()
    found = judge_robustness(shipped, dataset, budget=budget, max_explained=6, pictures=5, progress=False)
    assert shipped.training
    shipped.eval()
    return found


def test_all_attacks_are_judged(judged: Robustness) -> None:
    assert [method.name for method in judged.methods] == ["built-in", "grad-cam"] and len(judged.ids) == 6
    for method in judged.methods:
        means = {
            attack: {name: judged.interval(values).mean for name, values in scores.items()}
            for attack, scores in method.scores.items()
        }
        assert list(means) == list(ATTACKS)
        assert means["explanation"]["flipped"] == means["noise"]["flipped"] == 0
        assert means["prediction"]["flipped"] > 0.5 and means["prediction"]["logit"] < means["noise"]["logit"] - 1
        assert means["targeted"]["logit"] < -1 and 0 <= means["targeted"]["reached"] <= means["targeted"]["flipped"]
        for name in ("rank_correlation", "top_tenth", "ssim"):
            assert (
                means["explanation"][name] < means["noise"][name] and means["prediction"][name] < means["noise"][name]
            )
        assert list(method.shown) == ["clean", *ATTACKS]
        for attack, shown in method.shown.items():
            assert len(shown.images) == len(shown.maps) == 5
            if attack == "explanation":
                assert torch.equal(shown.predicted, judged.predicted[:5])
            elif attack != "clean":
                assert torch.equal(
                    (shown.predicted != judged.predicted[:5]).double(), method.scores[attack]["flipped"][:5]
                )
        # What knows no map is one attack for all of a model's maps.
        assert torch.equal(method.scores["prediction"]["logit"], judged.methods[0].scores["prediction"]["logit"])


def test_a_black_box_has_no_built_in_map() -> None:
    torch.manual_seed(0)
    dataset = create_dataset("critters", "test", count=2)
    model = glasszoo.create_model("test_byobnet", head=BLACK_BOX, num_classes=8).eval()
    budget = Budget(iterations=1)
    found = judge_robustness(model, dataset, budget=budget, attacks=["noise"], progress=False)
    assert [method.name for method in found.methods] == ["grad-cam"] and list(found.methods[0].scores) == ["noise"]
    with pytest.raises(InputError, match="no explanation is left to attack"):
        judge_robustness(model, dataset, methods=["built-in"], progress=False)
    with pytest.raises(InputError, match="a black box has no built-in map"):
        differentiable("built-in", model)
    with pytest.raises(InputError, match="unknown attack 'noize': did you mean 'noise'"):
        judge_robustness(model, dataset, attacks=["noize"], progress=False)
    with pytest.raises(InputError, match="did you mean 'grad-cam'"):
        judge_robustness(model, dataset, methods=["grad-kam"], progress=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": -1.0}, "an attack's epsilon must be at least 0, got -1.0"),
        ({"iterations": -1}, "an attack's iterations must be at least 0, got -1"),
        ({"change": "cosin"}, "unknown change of a map 'cosin': did you mean 'cosine'"),
        ({"softplus": 0.0}, "softplus needs a sharpness above 0, got 0.0"),
    ],
)
def test_a_wrong_budget_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Budget(**wrong)
