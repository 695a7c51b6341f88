"""Gates and attention, each computed a second time with numpy, cell by cell and class by class."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import correlate2d
from scipy.special import expit, softmax
from torch import Tensor, nn

from glasszoo.common.errors import InputError
from glasszoo.heads import SCOUTER, AttentionBranch, ClassAttention, GatedAttention, Head, create_head
from glasszoo.heads.gating import BatchNorm
from glasszoo.heads.scouter import attend, sine_positions

Array = NDArray[np.float64]


def made(name: str, num_features: int = 6, num_classes: int = 4, seed: int = 0, **options: object) -> Any:
    torch.manual_seed(seed)
    head = create_head(name, num_features, num_classes, **options).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return head.eval()


def value(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def on_grid(cells: Array, like: Array) -> Array:
    return cells.reshape(-1, *like.shape[-2:])


def class_scores(head: Any, image: Array) -> Array:
    """W_c · x at each cell, `c n`."""
    return value(head.classifier.weight) @ image.reshape(len(image), -1)


def gated_attention(head: GatedAttention, images: Array) -> Array:
    def layer(convolution: nn.Conv2d, cells: Array) -> Array:
        weight = value(convolution.weight)[:, :, 0, 0]
        return weight @ cells + (0 if convolution.bias is None else value(convolution.bias)[:, None])

    evidence = []
    for image in images:
        cells = image.reshape(len(image), -1)
        scores = layer(head.attention, np.tanh(layer(head.content, cells)) * expit(layer(head.gate, cells)))
        evidence.append(on_grid(softmax(scores, axis=1) * class_scores(head, image), image))
    return np.stack(evidence)


def class_attention(head: ClassAttention, images: Array) -> Array:
    queries, keys = value(head.queries), value(head.key.weight)[:, :, 0, 0]
    evidence = []
    for image in images:
        own = class_scores(head, image)
        for label, questions in enumerate(queries):
            answers = [softmax(query @ keys @ image.reshape(len(image), -1) / len(query) ** 0.5) for query in questions]
            own[label] *= sum(answers) / len(answers)
        evidence.append(on_grid(own, image))
    return np.stack(evidence)


def batch_norm(module: nn.BatchNorm2d, maps: Array, channel: int) -> Array:
    """Of the batch's maps `b h w` of one channel."""
    mean, variance = maps.mean(), maps.var()
    if not module.training:
        mean, variance = module.running_mean[channel].item(), module.running_var[channel].item()  # type: ignore[index]
    normalised = (maps - mean) / np.sqrt(variance + module.eps)
    return normalised * value(module.weight)[channel] + value(module.bias)[channel]


def filtered(maps: Array, kernels: Array) -> Array:
    return np.asarray(sum(correlate2d(one, kernel, mode="same") for one, kernel in zip(maps, kernels, strict=True)))


def evidence_of_gates(head: Any, images: Array, gates: Array) -> Array:
    num_cells = images.shape[-2] * images.shape[-1]
    return np.stack(
        [
            gate * on_grid(class_scores(head, image), image) / num_cells
            for gate, image in zip(gates, images, strict=True)
        ]
    )


def same_size_kernel(convolution: nn.Conv2d) -> Array:
    return value(convolution.weight)[0]


def padded(maps: Array, by: int) -> Array:
    """`correlate2d` swaps its arguments where the kernel is the larger one; this way it never is."""
    return np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(by, by)] * 2)


def cropped(maps: Array, by: int) -> Array:
    return maps[..., by:-by, by:-by] if by else maps


def cbam(head: Any, images: Array) -> Array:
    kernels = same_size_kernel(head.convolution)
    reach = kernels.shape[-1]
    pairs = [np.stack([image.mean(0), image.max(0)]) for image in images]
    scores = np.stack([cropped(filtered(padded(pair, reach), kernels), reach) for pair in pairs])
    return evidence_of_gates(head, images, 2 * expit(batch_norm(head.norm, scores, 0)))


def attention_branch(head: AttentionBranch, images: Array) -> Array:
    respond = value(head.respond.weight)[:, :, 0, 0]
    responses = np.einsum("cd,bdhw->bchw", respond, images)
    for channel in range(responses.shape[1]):
        responses[:, channel] = np.maximum(batch_norm(head.norm, responses[:, channel], channel), 0)
    kernels = same_size_kernel(head.convolution)
    reach = kernels.shape[-1]
    scores = np.stack([cropped(filtered(padded(maps, reach), kernels), reach) for maps in responses])
    return evidence_of_gates(head, images, (1 + expit(batch_norm(head.gate_norm, scores, 0))) / 1.5)


def scouter(head: SCOUTER, images: Array) -> Array:
    def linear(layer: nn.Module, inputs: Array) -> Array:
        return inputs @ value(layer.weight).T + value(layer.bias)  # type: ignore[arg-type, operator]

    dim = head.slots.shape[1]
    height, width = images.shape[-2:]
    code = np.zeros((height, width, dim))
    for row in range(height):
        for column in range(width):
            for axis, place in enumerate(((row + 0.5) / height, (column + 0.5) / width)):
                for wave in range(dim // 4):
                    angle = 2 * np.pi * place / 10000 ** (wave / (dim // 4))
                    code[row, column, axis * dim // 2 + wave] = np.sin(angle)
                    code[row, column, axis * dim // 2 + dim // 4 + wave] = np.cos(angle)
    evidence = []
    for image in images:
        pixels = image.reshape(len(image), -1).T
        weight = value(head.value.weight)[:, :, 0, 0]
        cells = np.maximum(pixels @ weight.T + value(head.value.bias), 0)  # type: ignore[arg-type]
        hidden = np.maximum(linear(head.key[0], cells + code.reshape(-1, dim)), 0)
        keys = linear(head.key[2], hidden)
        slots = value(head.slots)
        for rounds_left in reversed(range(head.iterations)):
            scores = slots @ keys.T / dim**0.5
            totals = np.abs(scores).sum(1)
            attention = expit(scores / totals[:, None] * totals.mean())
            if rounds_left:
                assert head.update is not None
                found = attention @ cells / dim
                gates = found @ value(head.update.weight_ih).T + value(head.update.bias_ih)
                memory = slots @ value(head.update.weight_hh).T + value(head.update.bias_hh)
                reset, keep, new = (slice(part * dim, (part + 1) * dim) for part in range(3))
                proposed = np.tanh(gates[:, new] + expit(gates[:, reset] + memory[:, reset]) * memory[:, new])
                kept = expit(gates[:, keep] + memory[:, keep])
                slots = kept * slots + (1 - kept) * proposed
        maps = attention.reshape(head.num_classes, -1, height * width).sum(1) * cells.mean(1)
        evidence.append(on_grid(head.sign * maps, image))
    return np.stack(evidence)


SECOND: dict[str, Callable[[Any, Array], Array]] = {
    "gated_attention": gated_attention,
    "class_attention": class_attention,
    "cbam": cbam,
    "attention_branch": attention_branch,
    "scouter": scouter,
}
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "gated_attention": st.fixed_dictionaries({"hidden": st.integers(1, 9), "per_class": st.booleans()}),
    "class_attention": st.fixed_dictionaries({"queries": st.integers(1, 3), "dim": st.integers(1, 9)}),
    "cbam": st.fixed_dictionaries({"kernel_size": st.sampled_from([1, 3, 7])}),
    "attention_branch": st.fixed_dictionaries({"kernel_size": st.sampled_from([1, 3])}),
    "scouter": st.fixed_dictionaries(
        {
            "slots": st.integers(1, 3),
            "dim": st.sampled_from([4, 12]),
            "iterations": st.integers(1, 4),
            "evidence_sign": st.sampled_from(["positive", "negative"]),
        }
    ),
}
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 6), st.integers(1, 6))


def check_against_second(name: str, head: Any, features: Tensor) -> None:
    wanted = SECOND[name](head, value(features))
    explained = head(features, "all")
    scale = explained.logits.abs().max().item()
    bias = value(head.classifier.bias) if hasattr(head, "classifier") else np.zeros(head.num_classes)
    np.testing.assert_allclose(value(explained.maps), wanted, rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(value(explained.logits), wanted.sum((-2, -1)) + bias, rtol=0, atol=1e-9 * scale)
    np.testing.assert_array_equal(value(explained.offset), np.broadcast_to(bias, explained.offset.shape))


@pytest.mark.parametrize("name", SECOND)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), shape=SHAPES, num_classes=st.integers(1, 5), seed=st.integers(0, 999))
def test_logits_and_evidence_a_second_time(
    name: str, data: st.DataObject, shape: tuple[int, ...], num_classes: int, seed: int
) -> None:
    head = made(name, shape[1], num_classes, seed, **data.draw(OPTIONS[name]))
    batch_has_statistics = shape[0] * shape[2] * shape[3] > 1
    head.train(batch_has_statistics and data.draw(st.booleans()))
    check_against_second(name, head, torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("name", SECOND)
def test_learns_from_its_start_and_still_adds_up(name: str) -> None:
    torch.manual_seed(0)
    head = create_head(name, 6, 4).double().train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    features, labels = torch.randn(8, 6, 4, 5, dtype=torch.float64), torch.arange(8) % 4
    features[range(8), labels, 1, 2] += 9
    classification = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(head(features, 0).logits, labels)  # alone: it has to reach the gate
        classification.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert classification[-1] < classification[0] - 0.1
    parts = head(features).parts
    # No start value is a dead end: what was the same at each cell differs now.
    assert (parts.amax((-2, -1)) - parts.amin((-2, -1))).max() > 0.1
    check_against_second(name, head.eval(), features)


GATES = ["gated_attention", "class_attention", "cbam", "attention_branch"]


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_starts_as_average_pooling(name: str, training: bool, with_bias: bool) -> None:
    options: list[dict[str, Any]] = [{}]
    options += {"gated_attention": [{"per_class": True}], "class_attention": [{"queries": 3}]}.get(name, [])
    weight, bias = torch.randn(5, 8), torch.randn(5) if with_bias else None
    features = torch.randn(3, 8, 6, 7)
    for chosen in options:
        head = create_head(name, 8, 5, **chosen).train(training)
        assert head.fold(weight, bias)
        explained = head(features, "all")
        plain = nn.functional.linear(features.mean((-2, -1)), weight, bias)
        torch.testing.assert_close(explained.logits, plain, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(
            explained.maps, torch.einsum("cd,bdhw->bchw", weight, features) / 42, atol=1e-6, rtol=1e-5
        )


def test_scouter_says_that_it_cannot_start_as_a_linear_classifier() -> None:
    assert not create_head("scouter", 8, 5).fold(torch.randn(5, 8), torch.randn(5))


@pytest.mark.parametrize("name", GATES)
def test_parts_are_attention_or_openness(name: str) -> None:
    parts = made(name)(torch.randn(2, 6, 5, 4, dtype=torch.float64)).parts
    assert (parts > 0).all() and (parts < 1).all()
    if "branch" not in name and name != "cbam":
        torch.testing.assert_close(parts.sum((-2, -1)), torch.ones(parts.shape[:2], dtype=torch.float64))


def spikes() -> Tensor:
    """One image, 4 channels: channel d is 9 at the cell (d, d) of a 4 × 4 grid, and 0.1 elsewhere."""
    return 0.1 + 8.9 * torch.diag_embed(torch.eye(4, dtype=torch.float64))[None]


def test_sharp_gated_attention_reads_one_cell() -> None:
    head = made("gated_attention", 4, 3, hidden=1)
    with torch.no_grad():
        for parameter in (head.content.weight, head.gate.weight, head.content.bias):
            parameter.zero_()
        head.content.weight[0, 2] = 0.1
        head.gate.bias.fill_(50)
        head.attention.weight.fill_(200)
    state = head.score(spikes())
    head_logits = head.classifier(spikes()[:, :, 2, 2])
    torch.testing.assert_close(state.logits, head_logits)
    assert head.losses(state, torch.zeros(1).long())["attention_entropy"] < 1e-9


@pytest.mark.parametrize("per_class", [False, True])
def test_entropy_of_uniform_attention(per_class: bool) -> None:
    head = create_head("gated_attention", 4, 3, per_class=per_class)
    entropy = head.losses(head.score(torch.randn(2, 4, 5, 7)), torch.zeros(2).long())["attention_entropy"]
    assert entropy.item() == pytest.approx(np.log(35), rel=1e-6)
    assert set(head.loss_weights()) == {"attention_entropy"}


def test_each_class_reads_the_cells_it_asks_for() -> None:
    head = made("class_attention", 4, 3, queries=2, dim=4)
    with torch.no_grad():
        head.key.weight.copy_(torch.eye(4)[..., None, None])
        head.queries.zero_()
        for label in range(3):
            head.queries[label, 0, label] = head.queries[label, 1, label + 1] = 100
    explained = head(spikes(), "all")
    for label in range(3):
        for place in range(4):
            share = 0.5 if place in (label, label + 1) else 0.0
            wanted = share * head.classifier.weight[label] @ spikes()[0, :, place, place]
            assert explained.maps[0, label, place, place].item() == pytest.approx(wanted.item(), abs=1e-9)
    assert explained.parts.shape == (1, 6, 4, 4)  # class by class
    assert explained.parts[0, [0, 1, 2, 3, 4, 5], [0, 1, 1, 2, 2, 3], [0, 1, 1, 2, 2, 3]].min() > 0.999


@pytest.mark.parametrize("name", ["cbam", "attention_branch"])
def test_a_gate_shut_and_open(name: str) -> None:
    head = made(name)
    norm = head.norm if name == "cbam" else head.gate_norm
    features = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    plain = features.mean((-2, -1)) @ head.classifier.weight.T
    shut, opened = (0.0, 2.0) if name == "cbam" else (2 / 3, 4 / 3)
    for shift, factor in ((-60.0, shut), (60.0, opened)):
        nn.init.zeros_(norm.weight)
        nn.init.constant_(norm.bias, shift)
        torch.testing.assert_close(head(features).logits, factor * plain + head.classifier.bias)


def test_batch_norm_of_a_single_value() -> None:
    ours, plain = BatchNorm(3), nn.BatchNorm2d(3)
    several = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(ours(several), plain(several))
    torch.testing.assert_close(ours.running_var, plain.running_var)
    single = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(ours(single), plain.eval()(single))
    assert torch.equal(ours.running_mean, plain.running_mean)  # type: ignore[arg-type]
    for name in ("cbam", "attention_branch"):
        check_total(made(name).train(), torch.randn(1, 6, 1, 1, dtype=torch.float64))


def check_total(head: Head, features: Tensor) -> None:
    explained = head(features, "all")
    torch.testing.assert_close(explained.maps.sum((-2, -1)) + explained.offset, explained.logits)


def test_the_branch_has_a_loss_of_its_own() -> None:
    head, labels = made("attention_branch"), torch.tensor([0, 3, 1])
    features = torch.randn(3, 6, 5, 5, dtype=torch.float64)
    state = head.score(features)
    every_cell = torch.einsum("bchw,kc->bkhw", state.responses, head.branch_classifier.weight)
    logits = every_cell.mean((-2, -1)) + head.branch_classifier.bias
    wanted = -logits.log_softmax(1)[range(3), labels].mean()
    loss = head.losses(state, labels)["attention_branch"]
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert head.classifier.weight.grad is None and head.respond.weight.grad.abs().sum() > 0


def test_negative_slots_speak_against() -> None:
    features = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    support, against = (made("scouter", evidence_sign=sign)(features, "all") for sign in ("positive", "negative"))
    assert (support.maps >= 0).all() and support.maps.max() > 0 and not support.offset.any()
    # The top classes differ, the classes' maps only by their sign.
    assert torch.equal(against.maps, -support.maps) and torch.equal(against.logits, -support.logits)


def test_slots_all_attend_to_the_same_amount_of_score() -> None:
    slots, keys = torch.randn(1, 5, 8).double(), torch.randn(1, 9, 8).double()
    scores = attend(slots, keys).logit()
    totals = scores.abs().sum(-1)
    torch.testing.assert_close(totals, totals[:, :1].expand(-1, 5))
    # Where scores have one sign, that is the paper's formula up to the number of slots.
    slots, keys = slots.abs(), keys.abs()
    dots = slots @ keys.mT / 8**0.5
    paper = dots / dots.sum(-1, keepdim=True) * dots.sum((-2, -1), keepdim=True)
    torch.testing.assert_close(attend(slots, keys).logit(), paper / 5)


def test_slots_that_find_nothing_do_no_harm() -> None:
    slots, keys = torch.randn(1, 5, 8), torch.zeros(1, 9, 8, requires_grad=True)
    attention = attend(slots, keys)
    assert torch.equal(attention, torch.full((1, 5, 9), 0.5))
    attention.sum().backward()
    assert keys.grad is not None and torch.isfinite(keys.grad).all()
    head = create_head("scouter", 4, 3)
    state = head.score(torch.randn(2, 4, 3, 3))
    state.parts = torch.tensor([[[[0.5]]], [[[0.1]]]])
    assert head.losses(state, torch.zeros(2).long())["slot_area"].item() == pytest.approx((0.25 + 0.01) / 2)


def test_positions_fit_any_grid() -> None:
    """The middle of the grid has one code, whatever the grid's size, and no two cells share theirs."""
    odd = [sine_positions(torch.zeros(1, 16, height, width)) for height, width in ((1, 1), (3, 5), (9, 7))]
    for codes in odd:
        middle = codes[:, codes.shape[1] // 2, codes.shape[2] // 2]
        torch.testing.assert_close(middle, odd[0][:, 0, 0], atol=1e-6, rtol=0)
        cells = codes.flatten(1).T
        distances = torch.cdist(cells, cells) + 10 * torch.eye(len(cells))
        assert distances.min() > 0.1


def test_many_classes_and_slots() -> None:
    explained = create_head("scouter", 8, 200, slots=5)(torch.randn(1, 8, 7, 9))
    assert explained.parts.shape == (1, 1000, 7, 9) and explained.maps.shape == (1, 1, 7, 9)


@pytest.mark.parametrize("name", SECOND)
def test_losses_do_not_depend_on_how_a_batch_is_split(name: str) -> None:
    head, labels = made(name), torch.tensor([0, 3, 1, 2])
    features = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    whole = head.losses(head.score(features), labels)
    halves = [head.losses(head.score(features[half]), labels[half]) for half in (slice(2), slice(2, 4))]
    for term, loss in whole.items():
        torch.testing.assert_close(loss, (halves[0][term] + halves[1][term]) / 2)
    assert set(head.loss_weights()) <= set(whole)


@pytest.mark.parametrize("name", SECOND)
def test_what_must_not_decay_is_there(name: str) -> None:
    head = create_head(name, 8, 5)
    assert head.no_weight_decay() <= {key for key, _ in head.named_parameters()}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gated_attention", {"hidden": 0}, "hidden=0: must be at least 1"),
        ("class_attention", {"queries": 0}, "queries=0: must be at least 1"),
        ("class_attention", {"dim": -1}, "dim=-1: must be at least 1"),
        ("cbam", {"kernel_size": 4}, "kernel_size=4: must be odd"),
        ("cbam", {"kernel_size": -1}, "kernel_size=-1: must be at least 1"),
        ("attention_branch", {"kernel_size": 2}, "kernel_size=2: must be odd"),
        ("scouter", {"slots": 0}, "slots=0: must be at least 1"),
        ("scouter", {"iterations": 0}, "iterations=0: must be at least 1"),
        ("scouter", {"dim": 6}, "dim=6: must be a multiple of 4"),
        ("scouter", {"dim": 0}, "dim=0: must be a multiple of 4"),
        ("scouter", {"evidence_sign": "positiv"}, "positive"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_head(name, 8, 5, **options)
