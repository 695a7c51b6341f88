"""The exact truth about parts, held to the axioms that define it; maps whose agreement with it is known."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import Tensor

from glasszoo.common.errors import InputError
from glasszoo.data.critter_interventions import keep_only, remove, swap
from glasszoo.data.critter_render import render
from glasszoo.data.critter_rules import RULES, SLOTS
from glasszoo.data.critter_scenes import sample_scenes
from glasszoo.evaluation.part_truth import (
    SUBSETS,
    evidence_slots,
    part_renders,
    part_shapley,
    seen,
    shapley_values,
    subset_logits,
    swapped_to_nearest,
)
from glasszoo.evaluation.truth_scores import (
    contrast,
    correctness,
    idle_parts,
    mass_share,
    part_curves,
    part_sums,
)
from glasszoo.models import Preprocessing

PARTS = len(SLOTS)
PLAIN = Preprocessing((3, 64, 64), crop_pct=1.0).transform()
NAN = pytest.approx(torch.nan, nan_ok=True)


@pytest.fixture
def values() -> Tensor:
    """Games of six images without any structure."""
    return 10 * torch.randn(6, 2**PARTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def tiles() -> Tensor:
    """Masks `2 5 8 8` of five parts, which do not overlap and leave three rows of background."""
    masks = torch.zeros(2, PARTS, 8, 8, dtype=torch.bool)
    for part in range(PARTS):
        masks[:, part, part, : part + 2] = True
    return masks


def painted(tiles: Tensor, sums: Tensor) -> Tensor:
    """Maps `m b h w` whose sums over the tiles are `sums` (m b p)."""
    return torch.einsum("mbp,bphw->mbhw", (sums / tiles.sum((2, 3))).float(), tiles.float())


def has(part: int) -> Tensor:
    return torch.tensor([SLOTS[part] in kept for kept in SUBSETS])


def test_shapley_values_are_the_mean_over_all_orders(values: Tensor) -> None:
    expected = torch.zeros(len(values), PARTS, dtype=torch.float64)
    orders = list(permutations(range(PARTS)))
    for order in orders:
        there: frozenset[int] = frozenset()
        for part in order:
            before, there = there, there | {part}
            numbers = [SUBSETS.index(tuple(SLOTS[p] for p in sorted(each))) for each in (before, there)]
            expected[:, part] += (values[:, numbers[1]] - values[:, numbers[0]]) / len(orders)
    torch.testing.assert_close(shapley_values(values), expected, atol=1e-10, rtol=0)


def test_axioms(values: Tensor) -> None:
    found = shapley_values(values)
    torch.testing.assert_close(found.sum(1), values[:, -1] - values[:, 0], atol=1e-5, rtol=0)  # efficiency
    swapped = torch.tensor([(subset & ~9) | (subset >> 3 & 1) | (subset & 1) << 3 for subset in range(2**PARTS)])
    torch.testing.assert_close(found[:, [3, 1, 2, 0, 4]], shapley_values(values[:, swapped]), atol=1e-5, rtol=0)
    alike = shapley_values(values + values[:, swapped])  # parts 0 and 3 play the same role
    torch.testing.assert_close(alike[:, 0], alike[:, 3], atol=1e-5, rtol=0)
    assert (alike[:, 0] - alike[:, 1]).abs().min() > 0.1
    without_two = torch.arange(2**PARTS) & ~4
    idle = shapley_values(values[:, without_two])  # nothing depends on part 2
    assert idle[:, 2].abs().max() < 1e-5 and idle[:, 1].abs().min() > 0.01


def test_a_linear_model_gives_each_part_its_contribution(tiles: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    shown = torch.stack([has(part) for part in range(PARTS)], 1).float()  # subsets parts
    pictures = tiles[:, :, None] * torch.randn(2, PARTS, 3, 8, 8, generator=generator)
    renders = torch.einsum("sp,bpchw->bschw", shown, pictures) + 0.3 * ~tiles.any(1)[:, None, None]
    weights = torch.randn(4, 3, 8, 8, generator=generator)
    classes = torch.tensor([3, 1])

    def logits(images: Tensor, classes: Tensor) -> Tensor:
        return (weights[classes] * images).sum((1, 2, 3)) + classes

    expected = (weights[classes][:, None] * pictures).sum((2, 3, 4)).double()
    for chunk in (1, 7, 64):
        found = part_shapley(logits, renders, classes, chunk)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    every = subset_logits(logits, renders, classes, 64)
    torch.testing.assert_close(found.sum(1), every[:, -1] - every[:, 0], atol=1e-5, rtol=0)


def test_values_of_some_subsets_are_refused() -> None:
    with pytest.raises(InputError, match=r"values of all subsets \(b, 2\^parts\) expected, got \(2, 31\)"):
        shapley_values(torch.zeros(2, 31))


def test_renders_are_the_scenes_with_every_subset_through_the_preprocessing() -> None:
    scenes = sample_scenes([3, 4, 5], 0)
    smaller = Preprocessing((3, 48, 48), mean=(0.4, 0.5, 0.6), crop_pct=0.9).transform()
    renders = part_renders(scenes, 64, smaller)
    assert renders.shape == (3, 32, 3, 48, 48)
    assert SUBSETS[0] == () and SUBSETS[-1] == SLOTS and len(set(SUBSETS)) == 32
    for place in (0, 5, 18, 31):
        for row in range(3):
            picture = render(keep_only(scenes, SUBSETS[place]), 64).images[row]
            alone = smaller(torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))))
            torch.testing.assert_close(renders[row, place], alone.as_subclass(Tensor), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen(scenes, 64, smaller).images, renders[:, -1])


def test_masks_are_moved_along_with_the_picture() -> None:
    scenes = sample_scenes(np.arange(20), 0)
    drawn = render(scenes, 64)
    same = seen(scenes, 64, PLAIN)
    np.testing.assert_array_equal(same.parts, drawn.parts)
    np.testing.assert_array_equal(same.creature, drawn.creature)
    np.testing.assert_array_equal(same.distractors, drawn.distractors)
    cut = seen(scenes, 64, Preprocessing((3, 128, 128), crop_pct=0.5).transform())  # 4 pixels for one
    np.testing.assert_array_equal(cut.parts[..., ::4, ::4], drawn.parts[..., 16:48, 16:48])


@pytest.mark.parametrize("name", RULES)
def test_the_nearest_swap_makes_the_class_it_says(name: str) -> None:
    rule = RULES[name]
    scenes = sample_scenes(np.arange(40), 0, rule=name)
    swapped = swapped_to_nearest(scenes, rule)
    before, after = rule.label(scenes), rule.label(swapped.scenes)
    np.testing.assert_array_equal(after, swapped.classes)
    assert (before != after).all() and swapped.slots.any(axis=1).all()
    assert not swapped.slots[:, [slot not in rule.slots for slot in SLOTS]].any()
    differs = render(scenes, 64).regions != render(swapped.scenes, 64).regions
    assert name == "texture" or differs.any()
    one = swapped_to_nearest(scenes.take(slice(7, 8)), rule)
    assert one.classes[0] == swapped.classes[7]


def test_a_conjunction_needs_one_swap_and_an_alternative_two() -> None:
    for name, count in (("conjunction", 1), ("redundant", 2)):
        swapped = swapped_to_nearest(sample_scenes(np.arange(40), 0, rule=name), RULES[name])
        assert (swapped.slots.sum(axis=1) == count).all()
    both = swapped_to_nearest(sample_scenes(np.arange(40), 0), RULES["conjunction"]).slots
    assert both[:, SLOTS.index("head")].any() and both[:, SLOTS.index("tail")].any()


def test_slots_that_speak_for_a_class() -> None:
    rule = RULES["conjunction"]
    scenes = swap(swap(sample_scenes([0, 1, 2], 0), "head", "eared"), "tail", "curl")
    classes = np.array([rule.classes.index(name) for name in ("eared-curl", "eared-bolt", "horned-fan")])
    found = [[slot for slot, is_in in zip(SLOTS, row, strict=True) if is_in]
             for row in evidence_slots(scenes, rule, classes)]  # fmt: skip
    assert found == [["head", "tail"], ["head"], []]
    assert not evidence_slots(remove(scenes, "head"), rule, classes)[:, 0].any()


def test_sums_over_parts(tiles: Tensor) -> None:
    maps = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    sums = part_sums(maps, tiles)
    for part in range(PARTS):
        torch.testing.assert_close(sums[..., part], maps[:, :, part, : part + 2].sum(-1).double())
    torch.testing.assert_close(part_sums(maps[0], tiles), sums[:1])
    assert (part_sums(maps, tiles & False) == 0).all()
    maps[1, 1, 7, 7] = torch.inf
    broken = part_sums(maps, tiles)
    assert broken[1, 1].isnan().all() and not broken[0].isnan().any() and not broken[1, 0].isnan().any()


def test_correctness(tiles: Tensor) -> None:
    shapley = torch.tensor([[3.0, 1.0, 0.5, -1.0, 0.0], [1.0, 5.0, 2.0, 4.0, 3.0]]).double()
    random = torch.randn(2, PARTS, generator=torch.Generator().manual_seed(3)).double()
    sums = part_sums(painted(tiles, torch.stack([shapley, 1e-30 * shapley, -shapley, random, 0 * shapley])), tiles)
    found = correctness(sums, shapley)
    assert found.rank_correlation.shape == found.error.shape == (5, 2)
    torch.testing.assert_close(found.rank_correlation[:2], torch.ones(2, 2).double())
    torch.testing.assert_close(found.rank_correlation[2], -torch.ones(2).double())
    for image in range(2):
        expected = spearmanr(random[image], shapley[image]).statistic
        assert found.rank_correlation[3, image].item() == pytest.approx(expected)
        scale = (random[image] @ shapley[image] / (random[image] @ random[image])).clamp(min=0)
        left = ((shapley[image] - scale * random[image]) ** 2).sum() / (shapley[image] ** 2).sum()
        assert found.error[3, image].item() == pytest.approx(left.item(), abs=1e-6)
    assert found.error[:2].abs().max() < 1e-10
    assert (found.error[[2, 4]] == 1).all() and (found.rank_correlation[4] == 0).all()


def test_correctness_without_truth_or_map_is_not_a_number() -> None:
    shapley = torch.tensor([[2.0] * PARTS, [0.0] * PARTS, [1.0, 2.0, 3.0, 4.0, 5.0]]).double()
    sums = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]] * 2 + [[torch.nan] * PARTS]).double()[None]
    found = correctness(sums, shapley)
    assert found.rank_correlation[0].tolist() == [NAN, NAN, NAN]
    assert found.error[0].tolist() == [pytest.approx(1 - 225 / 275), NAN, NAN]


def test_curves_follow_the_order_of_the_map(values: Tensor) -> None:
    order = [2, 0, 4, 1, 3]
    sums = torch.zeros(1, len(values), PARTS).double()
    sums[0, :, order] = torch.arange(PARTS, 0, -1).double()
    curves = part_curves(values, sums)
    there: set[int] = set()
    for step, part in enumerate([None, *order]):
        there |= set() if part is None else {part}
        kept = SUBSETS.index(tuple(SLOTS[p] for p in sorted(there)))
        removed = SUBSETS.index(tuple(slot for p, slot in enumerate(SLOTS) if p not in there))
        torch.testing.assert_close(curves.kept[0, :, step], values[:, kept])
        torch.testing.assert_close(curves.removed[0, :, step], values[:, removed])


def test_the_best_order_scores_one_the_worst_none_and_equal_sums_their_mean(values: Tensor) -> None:
    orders = torch.tensor(list(permutations(range(PARTS, 0, -1)))).double()  # as maps' sums
    curves = part_curves(values, orders[:, None].expand(-1, len(values), -1))
    for score in (curves.sufficiency, curves.necessity):
        torch.testing.assert_close(score.amax(0), torch.ones(len(values)).double())
        assert score.amin(0).abs().max() < 1e-10
    best = curves.kept.mean(2).argmax(0)
    assert (curves.sufficiency[best, torch.arange(len(values))] > 0.999).all()
    lowest = curves.removed.mean(2).argmin(0)
    assert (curves.necessity[lowest, torch.arange(len(values))] > 0.999).all()
    tied = part_curves(values, torch.zeros(1, len(values), PARTS).double())
    torch.testing.assert_close(tied.sufficiency[0], curves.sufficiency.mean(0))
    torch.testing.assert_close(tied.removed[0], curves.removed.mean(0))
    scaled = part_curves(3 * values - 7, orders[:5, None].expand(-1, len(values), -1))
    torch.testing.assert_close(scaled.necessity, curves.necessity[:5])


def test_shapley_values_order_an_additive_game_best() -> None:
    worth = torch.tensor([[1.0, -2.0, 4.0, 0.5, 3.0]]).double()
    shown = torch.stack([has(part) for part in range(PARTS)], 1).double()
    curves = part_curves(worth @ shown.T, worth[None])
    assert curves.sufficiency.item() == pytest.approx(1) and curves.necessity.item() == pytest.approx(1)
    backwards = part_curves(worth @ shown.T, -worth[None])
    assert backwards.sufficiency.item() == pytest.approx(0) and backwards.necessity.item() == pytest.approx(0)


def test_curves_of_a_game_without_differences_or_a_map_with_holes(values: Tensor) -> None:
    sums = torch.arange(PARTS).double().expand(1, len(values), PARTS).clone()
    flat = part_curves(torch.ones_like(values), sums)
    assert flat.sufficiency.isnan().all() and flat.necessity.isnan().all() and (flat.kept == 1).all()
    sums[0, 2] = torch.nan
    broken = part_curves(values, sums)
    assert broken.sufficiency[0].isnan().tolist() == [False, False, True, False, False, False]


def test_mass_where_there_is_nothing(tiles: Tensor) -> None:
    background = ~tiles.any(1)
    maps = torch.stack([background.float(), tiles[:, 1].float(), torch.ones(2, 8, 8), -torch.ones(2, 8, 8)])
    share = mass_share(maps, background)
    whole = background[0].float().mean().item()
    assert share[:, 0].tolist() == [pytest.approx(1), 0, pytest.approx(whole), NAN]
    assert mass_share(maps, background & False).isnan().all()


def test_idle_parts(tiles: Tensor) -> None:
    shapley = torch.tensor([[10.0, 0.49, -0.51, -0.1, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0]]).double()
    idle = idle_parts(tiles, shapley)
    assert torch.equal(idle[0], tiles[0, 1] | tiles[0, 3]) and not idle[1].any()


def test_contrast(tiles: Tensor) -> None:
    swapped, follows = tiles[:, 2], torch.tensor([True, True])
    shared, here, elsewhere = tiles[:, 0].float() * 9, tiles[:, 2].float(), tiles[:, 4].float()
    first, second = torch.stack([shared + here, shared + elsewhere, shared]), torch.stack([shared, shared, shared])
    assert contrast(first, second, swapped, follows).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert contrast(second, first, swapped, follows)[0].tolist() == [0, 0]
    only_second = contrast(first, second, swapped, torch.tensor([False, True]))
    assert only_second.tolist() == [[NAN, 1], [NAN, 0], [NAN, 0]]
    assert contrast(first, second, swapped & False, follows).isnan().all()
