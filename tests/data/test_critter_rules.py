"""Rules and scenes: labels against an enumeration of all parts, interventions, tags, and what is drawn at random."""

from collections.abc import Callable
from itertools import combinations, product
from typing import get_args

import numpy as np
import pytest

from glasszoo.common.errors import InputError
from glasszoo.data.critter_interventions import keep_only, remove, remove_tag, replace_background, swap
from glasszoo.data.critter_rules import FACTORS, RULES, SLOTS, Rule
from glasszoo.data.critter_scenes import ObjectSize, Scenes, Tag, draw_labels, sample_scenes

# What is written about each rule, apart from its code table: class names, evidence, and which parts suffice.
STATED = {
    "conjunction": ("horned-fan", 8, ("head", "tail"), [{"head", "tail"}]),
    "redundant": ("leaf-boot", 4, ("wing", "foot"), [{"wing"}, {"foot"}]),
    "mark": ("star", 4, ("mark",), [{"mark"}]),
    "texture": ("plain", 4, ("wing",), [{"wing"}]),
    "relation": ("mark-ahead", 2, ("wing", "mark"), [{"wing", "mark"}]),
    "count": ("one-foot", 4, ("foot",), [{"foot"}]),
}


def every_critter(rule: Rule) -> Scenes:
    """One scene for each combination of variants of the rule's factors."""
    codes = np.array(list(product(*(range(len(FACTORS[name].variants)) for name in rule.factors))))
    scenes = sample_scenes(np.arange(len(codes)), 0)
    for name, values in zip(rule.factors, codes.T, strict=True):
        scenes = swap(scenes, name, values)
    return scenes


def test_every_rule_is_stated() -> None:
    assert set(STATED) == set(RULES)


@pytest.mark.parametrize("name", STATED)
def test_class_names_and_slots(name: str) -> None:
    rule, (first, count, slots, _) = RULES[name], STATED[name]
    assert rule.classes[0] == first
    assert len(set(rule.classes)) == len(rule.classes) == count
    assert rule.slots == slots


@pytest.mark.parametrize("name", STATED)
def test_label_is_the_class_whose_name_lists_the_variants(name: str) -> None:
    rule = RULES[name]
    scenes = every_critter(rule)
    values = [[FACTORS[f].variants[v] for v in scenes.factor(f)] for f in rule.factors]
    names = ["-".join(parts) for parts in zip(*values, strict=True)]
    expected = [rule.classes.index(full) if full in rule.classes else -1 for full in names]
    assert rule.label(scenes).tolist() == expected
    assert set(expected) - {-1} == set(range(len(rule.classes)))


@pytest.mark.parametrize("name", STATED)
def test_minimal_sufficient_sets_by_enumeration(name: str) -> None:
    """A set suffices when its parts leave a single class among all critters that have a class at all."""
    rule = RULES[name]
    scenes = every_critter(rule)
    scenes = scenes.take(rule.label(scenes) >= 0)
    labels = rule.label(scenes)
    subsets = [set(kept) for size in range(len(SLOTS) + 1) for kept in combinations(SLOTS, size)]

    def suffices(kept: set[str]) -> bool:
        seen = [f for f in rule.factors if set(FACTORS[f].slots) <= kept]
        classes: dict[tuple[int, ...], set[int]] = {}
        for row, label in enumerate(labels):
            classes.setdefault(tuple(int(scenes.factor(f)[row]) for f in seen), set()).add(int(label))
        return all(len(possible) == 1 for possible in classes.values())

    enough = [kept for kept in subsets if suffices(kept)]
    minimal = [kept for kept in enough if not any(other < kept for other in enough)]
    assert sorted(map(sorted, minimal)) == sorted(map(sorted, STATED[name][3]))
    assert sorted(map(sorted, rule.minimal_sufficient)) == sorted(map(sorted, minimal))
    for kept in subsets:
        assert (rule.label(keep_only(scenes, kept)) >= 0).all() == suffices(kept)


def test_neither_head_nor_tail_alone_settles_a_class_of_the_conjunction() -> None:
    pairs = "horned-fan horned-curl eared-curl eared-bolt crested-bolt crested-puff knobbed-puff knobbed-fan"
    assert RULES["conjunction"].classes == tuple(pairs.split())
    codes = np.array(RULES["conjunction"].codes)
    for column in codes.T:
        assert np.bincount(column).tolist() == [2, 2, 2, 2]


def test_parts_that_no_rule_uses_leave_the_label_alone() -> None:
    rule, scenes = RULES["conjunction"], sample_scenes(np.arange(40), 0)
    changed = swap(remove(remove(scenes, "wing"), "foot"), "mark", "moon")
    assert (rule.label(changed) == rule.label(scenes)).all()


def test_swap_to_another_class_follows_the_rule() -> None:
    scenes = sample_scenes(np.arange(64), 0)
    rule = RULES["conjunction"]
    target = (rule.label(scenes) + 3) % len(rule.classes)
    for factor, values in zip(rule.factors, np.array(rule.codes)[target].T, strict=True):
        scenes = swap(scenes, factor, values)
    assert (rule.label(scenes) == target).all()
    assert set(rule.label(swap(scenes, "tail", "fan"))) <= {-1, 0, 7}

    for name, factor, variant, expected in (
        ("mark", "mark", "heart", 2),
        ("texture", "texture", "dotted", 2),
        ("relation", "side", "mark-behind", 1),
        ("count", "count", "four-feet", 3),
    ):
        scenes = sample_scenes(np.arange(20), 0, rule=name)
        assert set(RULES[name].label(swap(scenes, factor, variant))) == {expected}


def test_swapping_one_of_two_redundant_parts_leaves_no_class() -> None:
    scenes = sample_scenes(np.arange(40), 0, rule="redundant")
    labels = RULES["redundant"].label(swap(scenes, "wing", "bat"))
    assert (labels[scenes.variants[:, SLOTS.index("foot")] == 1] == 1).all()
    assert (labels[scenes.variants[:, SLOTS.index("foot")] != 1] == -1).all()


def test_swap_puts_a_removed_part_back() -> None:
    scenes = sample_scenes(np.arange(5), 0)
    back = swap(remove(scenes, "tail"), "tail", scenes.factor("tail"))
    assert (back.variants == scenes.variants).all()


def test_interventions_leave_the_original_alone() -> None:
    scenes = sample_scenes(np.arange(5), 0)
    before = scenes.variants.copy()
    remove(scenes, "head"), keep_only(scenes, ["mark"]), swap(scenes, "tail", "fan"), replace_background(scenes, 1)
    assert (scenes.variants == before).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_sampled_scenes_have_the_drawn_label(rule: str, split: str) -> None:
    indices = np.arange(500)
    labels = draw_labels(indices, 3, split=split, rule=rule)  # type: ignore[arg-type]
    scenes = sample_scenes(indices, 3, split=split, rule=rule)  # type: ignore[arg-type]
    assert (RULES[rule].label(scenes) == labels).all()


def test_scene_does_not_depend_on_its_batch() -> None:
    many, few = sample_scenes(np.arange(100), 5), sample_scenes([61, 7], 5)
    for name in Scenes.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(many, name)[[61, 7]], getattr(few, name), err_msg=name)


@pytest.mark.parametrize("name", FACTORS)
def test_unused_factors_are_evenly_spread_and_unrelated_to_the_class(name: str) -> None:
    rule = "mark" if name != "mark" else "texture"
    scenes = sample_scenes(np.arange(4000), 0, rule=rule)
    counts = np.zeros((4, len(FACTORS[name].variants)))
    np.add.at(counts, (RULES[rule].label(scenes), scenes.factor(name)), 1)
    assert (np.abs(counts / counts.sum() - 1 / counts.size) < 0.015).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_tag_correlation(share: float) -> None:
    scenes = sample_scenes(np.arange(8000), 0, tag_correlation=share)
    own = (scenes.tag == RULES["conjunction"].label(scenes)).mean()
    assert own == pytest.approx(share + (1 - share) / 8, abs=0.02)
    assert np.bincount(scenes.tag, minlength=8).min() > 850


def test_tag_modes() -> None:
    indices = np.arange(400)
    labels = draw_labels(indices, 0)
    tags = {mode: sample_scenes(indices, 0, tag=mode).tag for mode in get_args(Tag)}
    assert (tags["aligned"] == labels).all()
    assert (tags["conflicting"] != labels).all()
    assert set(tags["conflicting"]) == set(range(8))
    assert (tags["absent"] == -1).all()
    assert (sample_scenes(indices, 0).tag == -1).all()
    assert (sample_scenes(indices, 0, tag="aligned", tag_correlation=0.0).tag == labels).all()


def test_tag_settings_change_nothing_else() -> None:
    plain = sample_scenes(np.arange(50), 0)
    correlated, aligned = (
        sample_scenes(np.arange(50), 0, tag_correlation=0.5),
        sample_scenes(np.arange(50), 0, tag="aligned"),
    )
    for name in set(Scenes.__dataclass_fields__) - {"tag"}:
        np.testing.assert_array_equal(getattr(plain, name), getattr(correlated, name), err_msg=name)
        np.testing.assert_array_equal(getattr(plain, name), getattr(aligned, name), err_msg=name)


def test_object_sizes_change_lengths_and_places_alone() -> None:
    sizes = {size: sample_scenes(np.arange(300), 0, object_size=size) for size in get_args(ObjectSize)}
    for size, share in (("small", 0.5), ("medium", 0.7), ("large", 1.0)):
        np.testing.assert_allclose(sizes[size].unit, share * sizes["large"].unit, rtol=1e-6)
    shares = sizes["mixed"].unit / sizes["large"].unit
    for share in (0.5, 0.7, 1.0):
        assert np.isclose(shares, share).mean() == pytest.approx(1 / 3, abs=0.1)
    for name in set(Scenes.__dataclass_fields__) - {"unit", "position"}:
        for size in sizes.values():
            np.testing.assert_array_equal(getattr(size, name), getattr(sizes["large"], name), err_msg=name)


def test_a_removed_tag_is_one_that_never_was() -> None:
    tagged, plain = sample_scenes(np.arange(50), 0, tag="aligned"), sample_scenes(np.arange(50), 0)
    removed = remove_tag(tagged)
    for name in Scenes.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(removed, name), getattr(plain, name), err_msg=name)
    assert (tagged.tag >= 0).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda s: remove(s, "heads"), "unknown critter slot 'heads': did you mean 'head'?"),
        (lambda s: keep_only(s, ["head", "feet"]), "unknown critter slot 'feet': did you mean 'foot'?"),
        (lambda s: swap(s, "tial", "fan"), "unknown critter slot or factor 'tial': did you mean 'tail'?"),
        (lambda s: swap(s, "tail", "fans"), "unknown variant of tail 'fans': did you mean 'fan'?"),
        (lambda s: swap(s, "tail", [0, 4, 0]), "variants of tail must lie between 0 and 3"),
        (lambda s: s.factor("colour"), "unknown critter slot or factor 'colour'"),
        (lambda s: sample_scenes([0], 0, rule="conjuction"), "unknown critter rule 'conjuction': did you mean"),
        (lambda s: sample_scenes([0], 0, split="val"), "unknown critter split 'val': known: test, train"),  # type: ignore[arg-type]
        (lambda s: sample_scenes([0], 0, tag="none"), "unknown critter tag 'none'"),  # type: ignore[arg-type]
        (lambda s: sample_scenes([0], 0, object_size="tiny"), "unknown critter size 'tiny'"),  # type: ignore[arg-type]
        (lambda s: sample_scenes([0], 0, tag_correlation=1.5), "tag_correlation must lie between 0 and 1, not 1.5"),
    ],
)
def test_bad_input(call: Callable[[Scenes], object], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        call(sample_scenes(np.arange(3), 0))
    assert sentence in str(error.value)
