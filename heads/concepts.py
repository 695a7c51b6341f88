"""Concepts: a spatial concept bottleneck; the logit is a short weighted list of concepts, each with a map.

    M_k = V_k · x(h, w)        c_k = mean_hw(M_k) + v_k        logit_j = Σ_k W_jk c_k + b_j,    W sparse
    evidence_j(h, w) = Σ_k W_jk M_k(h, w) / (H W)              offset_j = Σ_k W_jk v_k + b_j

Koh et al., "Concept Bottleneck Models", ICML 2020, with concepts that have a place, and no sigmoid before W, so that
the evidence adds up; W is shrunk by its L1 norm, then cut to a few concepts a class, as in "accuracy at n effective
concepts" (Srivastava, Yan, Weng, "VLG-CBM", NeurIPS 2024).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.errors import InputError
from .base import Contract, Features, Head, Phase, State, linear_evidence
from .devices import sum_over_devices
from .options import check_range
from .registry import register_head


@dataclass
class ConceptState(State):
    """`parts` are the concept maps `b p h w`."""

    concepts: Tensor  # b p: their values; with attributes the sigmoid is the probability that the attribute is there
    constants: Tensor  # b p: what of these values has no place: a bias, or what someone set the concept to


@register_head("concepts")
class Concepts(Head[ConceptState]):
    """A class as a weighted list of concepts that can be named, seen and corrected.

    Assumes that concepts are enough to tell the classes apart. `parts` are the concepts' maps, the evidence their
    weighted sum. With `attributes` (which class has which) concepts learn to be them; without, they are whatever helps,
    and a person has to name them. Use it where attributes are known, or where someone shall be able to correct what
    the model saw (`intervene`). Costs accuracy where K concepts are too few, and a matrix of K × d weights. As in every
    bottleneck with unbounded values, a concept can carry more than its name says: look at accuracy under intervention.

    A folded classifier is matched in the sense of least squares. It is met exactly, and `fold` says so, if the
    attributes' rows are linearly independent (W starts as the table of attributes), or, without attributes, if there
    are at least as many concepts as classes or features (concepts start as singular vectors).

    Args:
        num_concepts: K, without attributes; default 64.
        attributes: For each class a list of K zeros and ones.
        per_class: How many concepts a class keeps, at most, when the first phase ends; None keeps all.

    Raises:
        InputError: Attributes that are no such table, or do not fit the classes or `num_concepts`.
    """

    contract = Contract.LINEAR

    is_kept: Tensor
    attributes: Tensor | None

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        num_concepts: int | None = None,
        attributes: Sequence[Sequence[int]] | None = None,
        per_class: int | None = 5,
    ) -> None:
        super().__init__(num_features, num_classes)
        check_range("per_class", 1 if per_class is None else per_class, 1)
        table = None if attributes is None else _checked(attributes, num_classes, num_concepts)
        number = table.shape[1] if table is not None else 64 if num_concepts is None else num_concepts
        check_range("num_concepts", number, 1)
        self.per_class = per_class
        self.detector = nn.Linear(num_features, number)
        self.classifier = nn.Linear(number, num_classes)
        for layer in (self.detector, self.classifier):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.register_buffer("is_kept", torch.ones(num_classes, number, dtype=torch.bool))
        self.register_buffer("attributes", table, persistent=False)  # the configuration holds them

    @property
    def weight(self) -> Tensor:
        """What each class (c) makes of each concept (p): `c p`, zero where the class did not keep it."""
        return self.classifier.weight * self.is_kept

    def score(self, features: Features) -> ConceptState:
        """Logits `b c` from features `b d h w`; parts `b p h w`."""
        assert isinstance(features, Tensor)
        maps = functional.conv2d(features, self.detector.weight[..., None, None])
        return self._scored(features, maps, self.detector.bias.expand(maps.shape[0], -1))

    def intervene(self, state: ConceptState, values: Mapping[int, float]) -> ConceptState:
        """The state had each concept of `values` (by number) had this value, in every image.

        It has no place then: its map is zero, and what it adds to a logit is part of the offset. The new logits are in
        `.logits`; `explained` gives the evidence.

        Raises:
            InputError: No such concept.
        """
        maps, constants = state.parts.clone(), state.constants.clone()
        for number, value in values.items():
            check_range("concept", number, 0, maps.shape[1] - 1)
            maps[:, number], constants[:, number] = 0, value
        return self._scored(state.features, maps, constants)

    def _scored(self, features: Tensor, maps: Tensor, constants: Tensor) -> ConceptState:
        concepts = maps.mean((-2, -1)) + constants
        logits = functional.linear(concepts, self.weight, self.classifier.bias)
        return ConceptState(features, logits, maps, concepts, constants)

    def evidence(self, state: ConceptState, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, offset `b k`."""
        maps = linear_evidence(state.parts, self.weight, classes)
        constant = functional.linear(state.constants, self.weight, self.classifier.bias)
        return maps, constant.gather(1, classes)

    def losses(self, state: ConceptState, targets: Tensor) -> dict[str, Tensor]:
        """`sparsity`: the L1 norm of W; `concepts`, with attributes: their cross entropies, summed over concepts."""
        terms = {"sparsity": self.weight.abs().sum()}
        if self.attributes is not None:
            wanted = self.attributes[targets]
            errors = functional.binary_cross_entropy_with_logits(state.concepts, wanted, reduction="none")
            terms["concepts"] = errors.sum(1).mean()
        return terms

    def loss_weights(self) -> dict[str, float]:
        """`concepts` as in Koh et al.'s joint training."""
        return {"sparsity": 1e-4} | ({} if self.attributes is None else {"concepts": 0.01})

    def phases(self) -> list[Phase]:
        """All concepts; then those that each class keeps."""
        if self.per_class is None:
            return [Phase()]
        return [Phase("all concepts", project=True), Phase("kept concepts", lr_scale={"*": 0.1})]

    @torch.no_grad()
    def project(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Keep for each class the `per_class` concepts that move its logit most over the images of `loader`.

        What the others add on average goes to the bias. Returns the share of the movement (the sum of |weight| times
        the concept's standard deviation) that is kept.
        """
        model.eval()
        backbone: Any = model.backbone
        device = self.is_kept.device
        none = torch.zeros(0, self.is_kept.shape[1], dtype=torch.float64, device=device)
        found = [self.score(backbone(batch.images.to(device))).concepts.double() for batch in loader]
        values = torch.cat([none, *found])
        number = sum_over_devices(torch.tensor(len(values), device=device))
        mean = sum_over_devices(values.sum(0)) / number
        deviation = (sum_over_devices((values - mean).square().sum(0)) / number).sqrt()
        weight = self.classifier.weight.double()
        movement = weight.abs() * deviation
        order = movement.argsort(dim=1, descending=True, stable=True)
        self.is_kept.copy_(torch.zeros_like(self.is_kept).scatter(1, order[:, : self.per_class], True))
        self.classifier.bias.add_((weight * ~self.is_kept) @ mean)
        return {"concepts_kept": ((movement * self.is_kept).sum() / movement.sum().clamp(min=1e-12)).item()}

    @torch.no_grad()
    def fold(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Start as near as K concepts can to a classifier of pooled features; returns whether it is met exactly."""
        target = weight.double().cpu()
        number, rank = self.is_kept.shape[1], min(weight.shape)
        classes, detectors = torch.zeros(self.num_classes, number).double(), self.detector.weight.double().cpu()
        if self.attributes is not None:
            classes = self.attributes.double().cpu()
            detectors = torch.linalg.pinv(classes) @ target
            is_exact = int(torch.linalg.matrix_rank(classes)) == self.num_classes
        else:
            left, values, right = torch.linalg.svd(target, full_matrices=False)
            used = min(number, rank)
            classes[:, :used] = left[:, :used] * values[:used].sqrt()
            detectors[:used] = values[:used, None].sqrt() * right[:used]
            is_exact = number >= rank
        self.classifier.weight.copy_(classes)
        self.detector.weight.copy_(detectors)
        self.detector.bias.zero_()
        self.classifier.bias.copy_(torch.zeros_like(self.classifier.bias) if bias is None else bias)
        self.is_kept.fill_(True)
        return is_exact


def _checked(attributes: Sequence[Sequence[int]], num_classes: int, num_concepts: int | None) -> Tensor:
    if len(attributes) != num_classes:
        raise InputError(f"attributes: {len(attributes)} rows given for {num_classes} classes")
    widths = {len(row) if isinstance(row, Sequence) else 0 for row in attributes}
    if len(widths) != 1 or 0 in widths or any(value not in (0, 1) for row in attributes for value in row):
        raise InputError("attributes: a list of zeros and ones for each class expected, all of one length")
    if num_concepts not in (None, *widths):
        raise InputError(f"num_concepts={num_concepts}: the attributes are {widths.pop()}; leave num_concepts out")
    return torch.tensor(attributes, dtype=torch.get_default_dtype())
