"""Deformable ProtoPNet against loops: sampling that keeps lengths, logits, maps part by part, losses, projection."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prototype_stubs import Images, Plain
from torch import Tensor, nn

from glasszoo.common.errors import InputError
from glasszoo.heads import DeformableProtoPNet
from glasszoo.heads.deformable_protopnet import interpolated, locations, orthogonality


def made(classes: int = 2, seed: int = 0, **options: Any) -> DeformableProtoPNet:
    """A head whose parts move by about a cell."""
    torch.manual_seed(seed)
    head = DeformableProtoPNet(5, classes, **{"per_class": 2, "dim": 6, **options}).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    nn.init.uniform_(head.prototypes, -0.5, 1)
    return head


def squares_of(cell: Tensor) -> Tensor:
    """The squares that are interpolated, of a cell `d` that is not negative."""
    squares = (cell / cell.norm().clamp(min=1e-12)).square() + 1e-6
    return squares / squares.sum()


def sampled_at(cells: Tensor, row: float, column: float) -> Tensor:
    """The vector between the cells of `d h w`."""
    total = torch.zeros(len(cells), dtype=cells.dtype)
    for y in {math.floor(row), math.ceil(row)}:
        for x in {math.floor(column), math.ceil(column)}:
            total += (1 - abs(row - y)) * (1 - abs(column - x)) * squares_of(cells[:, y, x])
    return total.sqrt()


class Found(NamedTuple):
    """Around one centre, of each part: the vector, where it was sampled, and how far it was moved."""

    vectors: list[Tensor]
    places: list[tuple[float, float]]
    moves: list[tuple[float, float]]


def around(head: DeformableProtoPNet, features: Tensor, row: int, column: int) -> Found:
    """By loops, for features `d h w`."""
    cells = head.add_on(features[None])[0]
    _, height, width = cells.shape
    weight, bias = head.offset.weight, head.offset.bias
    assert bias is not None
    offsets = bias.clone()
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            if 0 <= row + y < height and 0 <= column + x < width:
                cell = cells[:, row + y, column + x]
                offsets = offsets + weight[:, :, y + 1, x + 1] @ (cell / cell.norm().clamp(min=1e-12))
    found = Found([], [], [])
    for part in range(9):
        down, across = (float(value) for value in offsets[2 * part : 2 * part + 2].detach())
        place = (
            min(max(row + part // 3 - 1 + down, 0.0), height - 1.0),
            min(max(column + part % 3 - 1 + across, 0.0), width - 1.0),
        )
        found.vectors.append(sampled_at(cells, *place))
        found.places.append(place)
        found.moves.append((down, across))
    return found


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from([{}, {"dim": None}, {"connection": "signed"}, {"connection": "fixed", "per_class": 1}]),
    st.integers(0, 99),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
)
@torch.no_grad()
def test_logits_and_evidence_by_loops(
    options: dict[str, Any], seed: int, classes: int, height: int, width: int
) -> None:
    head = made(classes, seed, **options)
    head.is_kept[0] = seed % 3 > 0
    features = torch.randn(2, 5, height, width, dtype=torch.float64)
    out, places = head(features, "all"), head.score(features).places
    logits = torch.zeros(2, classes, dtype=torch.float64)
    maps = torch.zeros(2, classes, height, width, dtype=torch.float64)
    weight = head.connection() * head.is_kept
    for image in range(2):
        centres = [(row, column) for row in range(height) for column in range(width)]
        every = {centre: around(head, features[image], *centre) for centre in centres}
        for number, prototype in enumerate(head.prototypes):
            parts = prototype.view(9, -1)
            parts = parts / parts.norm(dim=1, keepdim=True)
            shares = {
                centre: [(vector @ part / 9).item() for vector, part in zip(found.vectors, parts, strict=True)]
                for centre, found in every.items()
            }
            for (row, column), of_parts in shares.items():
                assert out.parts[image, number, row, column].item() == pytest.approx(max(sum(of_parts), 0), abs=1e-9)
            # Of centres around which all is alike, any may be taken.
            best = centres[places[image, number]]
            assert sum(shares[best]) == pytest.approx(max(map(sum, shares.values())), abs=1e-9)
            if sum(shares[best]) <= 0:
                continue
            for share, place in zip(shares[best], every[best].places, strict=True):
                maps[image, :, round(place[0]), round(place[1])] += weight[:, number] * share
            logits[image] += weight[:, number] * sum(shares[best])
    torch.testing.assert_close(out.logits, logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out.maps, maps, atol=1e-9, rtol=1e-9)
    assert not out.offset.any()


def test_what_is_not_found_holds_nothing() -> None:
    """All parts point away from all cells: the sum is cut at 0, and so are the parts."""
    head = made()
    with torch.no_grad():
        head.prototypes.copy_(-head.prototypes.abs())
    out = head(torch.randn(2, 5, 3, 3, dtype=torch.float64), "all")
    assert not out.logits.any() and not out.maps.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 3)])
def test_interpolation_keeps_length(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Also between cells that have nothing in common, outside the grid, and beside a cell of nothing but zeros."""
    torch.manual_seed(0)
    cells = torch.randn(2, 6, *shape, dtype=dtype).relu() * 30
    cells[0, :, 0, 0] = 0
    unit = nn.functional.normalize(cells, dim=1)
    where = locations(2 * torch.randn(2, 9, 2, *shape, dtype=dtype))
    vectors = interpolated(unit, where).unflatten(1, (9, 6))
    torch.testing.assert_close(vectors.norm(dim=2), torch.ones_like(where[:, :, 0]), atol=1e-5, rtol=0)
    assert vectors.min() > 0, "the root has a slope"


def test_interpolation_is_the_cell_at_its_centre() -> None:
    cells = torch.rand(1, 6, 4, 3, dtype=torch.float64) + 0.1
    unit = nn.functional.normalize(cells, dim=1)
    middle = interpolated(unit, locations(torch.zeros(1, 9, 2, 4, 3, dtype=torch.float64))).unflatten(1, (9, 6))[:, 4]
    torch.testing.assert_close(middle, unit, atol=1e-5, rtol=0)


def test_gradients_are_those_of_differences() -> None:
    """Of features and of the convolution that moves the parts, away from the edges of cells."""
    head = made(dim=None)
    with torch.no_grad():
        head.offset.weight.mul_(0.1)
        head.offset.bias.uniform_(0.2, 0.4)
        head.prototypes.abs_()
    features = (torch.rand(1, 5, 3, 4, dtype=torch.float64) + 0.2).requires_grad_()
    weight = head.offset.weight

    def logits(features: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(head, {"offset.weight": weight}, (features, 0)).logits

    assert torch.autograd.gradcheck(logits, (features, weight))


@torch.no_grad()
def test_losses_by_loops() -> None:
    head = made(3)
    features, targets = torch.randn(4, 5, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found = head.losses(head.score(features), targets)
    moves = [
        down**2 + across**2
        for image in features
        for row in range(2)
        for column in range(3)
        for down, across in around(head, image, row, column).moves
    ]
    assert found["offset"].item() == pytest.approx(sum(moves) / len(moves))
    assert len(moves) == 4 * 9 * 6
    cosines = []
    for number in range(3):
        parts = [part for prototype in head.prototypes[2 * number : 2 * number + 2] for part in prototype.view(9, -1)]
        cosines += [
            (one @ two / one.norm() / two.norm()).item() ** 2 for one in parts for two in parts if one is not two
        ]
    assert len(cosines) == 3 * 18 * 17
    assert found["orthogonality"].item() == pytest.approx(sum(cosines) / len(cosines))
    proximities = head.found(features)[1].flatten(2).amax(2)
    own = sum(proximities[image, 2 * target : 2 * target + 2].max() for image, target in enumerate(targets.tolist()))
    assert found["cluster"].item() == pytest.approx(-float(own) / 4)
    assert found.keys() == {"cluster", "separation", "sparsity", "orthogonality", "offset"}


def test_orthogonal_parts_cost_nothing() -> None:
    assert orthogonality(torch.eye(9).expand(2, 9, 9)) == 0
    assert orthogonality(torch.ones(1, 9, 1)) == 1


@pytest.mark.parametrize("options", [{}, {"dim": None, "per_class": 3}])
def test_a_projected_prototype_is_what_was_sampled(options: dict[str, Any]) -> None:
    head = made(**options).float()
    generator = torch.Generator().manual_seed(0)
    batches = [
        Images(torch.randn(2, 5, 3, 4, generator=generator), torch.tensor([label] * 2), [f"{label}a", f"{label}b"])
        for label in (0, 1)
    ]
    head.project(batches, Plain(head))
    every = {name: (image, int(label)) for batch in batches for image, label, name in zip(*batch, strict=True)}
    centres = set()
    assert [entry["prototype"] for entry in head.provenance] == list(range(len(head.owners)))
    for entry in head.provenance:
        image, label = every[entry["image"]]
        row, column = entry["cell"]
        assert label == entry["class"] == head.owners[entry["prototype"]]
        vectors = torch.stack(around(head.double(), image.double(), row, column).vectors)
        torch.testing.assert_close(head.directions[entry["prototype"]], vectors, atol=1e-3, rtol=0)
        parts = head.float()(image[None]).parts[0, entry["prototype"]]
        assert parts[row, column].item() == pytest.approx(1, abs=1e-5)
        centres.add((label, entry["image"], row, column))
    assert len(centres) == len(head.owners), "a centre was given twice within a class"


def test_parts_do_not_move_in_the_warm_up() -> None:
    head = DeformableProtoPNet(5, 2)
    warm, joint, _ = head.phases()
    assert "head.prototypes" in warm.trains and not any("offset" in name for name in warm.trains)
    assert {"head.offset.weight", "head.offset.bias"} <= set(joint.trains) and joint.project


@pytest.mark.parametrize(
    ("options", "message"),
    [({"per_class": 0}, "per_class=0"), ({"dim": 0}, "dim=0"), ({"connection": "sign"}, "did you mean 'signed'")],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DeformableProtoPNet(5, 2, **options)
