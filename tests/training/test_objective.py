"""What a step minimises: the classification loss and the head's terms, by the recipe's weight or else the head's."""

import pytest
import torch
from torch import Tensor

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.training.objective import Losses, Objective


def losses(head: str, loss_weights: dict[str, float], images: Tensor, labels: Tensor) -> Losses:
    torch.manual_seed(0)
    return Objective(glasszoo.create_model("test_resnet", head=head, num_classes=3), 0.0, loss_weights)(images, labels)


@pytest.mark.parametrize(
    ("head", "term", "chosen", "classification", "weight"),
    [
        ("sparse_cam", "evidence_spread", {}, 1.0, 0.1),  # the head's default
        ("sparse_cam", "evidence_spread", {"evidence_spread": 0.7}, 1.0, 0.7),  # the recipe's
        ("sparse_cam", "evidence_spread", {"evidence_spread": 0.0}, 1.0, 0.0),
        ("sparse_cam", "evidence_spread", {"classification": 0.5}, 0.5, 0.1),  # of one term says nothing of the others
        ("noisy_or", "binary_cross_entropy", {}, 1.0, 1.0),  # neither
        ("noisy_or", "binary_cross_entropy", {"classification": 0.0}, 0.0, 1.0),
    ],
)
def test_the_recipes_weight_goes_before_the_heads(
    head: str, term: str, chosen: dict[str, float], classification: float, weight: float
) -> None:
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 2])
    total, terms, _, logits, _ = losses(head, chosen, images, labels)
    assert terms.keys() == {"classification", term}
    torch.testing.assert_close(terms["classification"], torch.nn.functional.cross_entropy(logits, labels))
    torch.testing.assert_close(total.detach(), classification * terms["classification"] + weight * terms[term])


def test_a_weight_for_no_term_is_named() -> None:
    with pytest.raises(InputError, match="unknown loss term 'evidence_l2': did you mean 'evidence_l1'"):
        losses("sparse_cam", {"evidence_l2": 1.0}, torch.randn(2, 3, 64, 64), torch.tensor([0, 2]))


def test_a_phases_weight_goes_before_the_recipes() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 2])
    objective = Objective(glasszoo.create_model("test_resnet", head="sparse_cam", num_classes=3), 0.0, {})
    objective.loss_weights["evidence_spread"] = 0.7
    objective.phase_weights = {"classification": 0.0, "evidence_spread": 3.0}
    total, terms, *_ = objective(images, labels)
    torch.testing.assert_close(total.detach(), 3 * terms["evidence_spread"])
    objective.phase_weights = {"evidence_spred": 3.0}
    with pytest.raises(InputError, match="did you mean 'evidence_spread'"):
        objective(images, labels)


def test_views_share_their_images_label_and_region() -> None:
    """Two views count as two images with the same label would; the logits told are those of the first."""
    first, second = torch.randn(2, 2, 3, 64, 64).unbind(0)
    labels, region = torch.tensor([0, 2]), torch.rand(2, 64, 64) > 0.5
    torch.manual_seed(0)
    objective = Objective(glasszoo.create_model("test_resnet", num_classes=3).eval(), 0.0, {"evidence_energy": 1.0})
    both = objective(torch.cat([first, second]), labels, region)
    one, two = objective(first, labels, region), objective(second, labels, region)
    torch.testing.assert_close(both.logits, one.logits)
    for name in ("classification", "evidence_energy"):
        torch.testing.assert_close(both.terms[name], (one.terms[name] + two.terms[name]) / 2)
