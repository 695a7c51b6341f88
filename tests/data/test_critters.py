"""critters as pictures and as a data set: the same pixels everywhere, exact masks, interventions that stay local."""

import hashlib
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from torch.utils.data import DataLoader

from glasszoo.common.errors import InputError
from glasszoo.data.critter_interventions import (
    drop_distractors,
    keep_only,
    move,
    recolour,
    remove,
    replace_background,
    swap,
)
from glasszoo.data.critter_render import Rendering, render
from glasszoo.data.critter_rules import RULES, SLOTS
from glasszoo.data.critter_scenes import Scenes, sample_scenes
from glasszoo.data.critters import Critters
from glasszoo.data.samples import collate
from glasszoo.data.signed_distance import Pen

GOLDEN = {
    64: "ad13b7a5deb24a6282b0e0876a9a5055284b05272e9ae556b2964caca3cab382",
    128: "6c5eb34e74d6c433e8d5fd4c887ae70dbd5458230ee85a791fd65c4449b9cacb",
    224: "4b6659e6aaaca19f5f71c2be07b064713f7fcad5722a54f6df84ac4bb3947699",
}


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(np.arange(120), 0, tag_correlation=0.5)


@pytest.fixture(scope="module")
def drawn(scenes: Scenes) -> Rendering:
    return render(scenes, 64)


def grown(masks: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Masks `... h w` with everything within so many pixels (8 neighbours)."""
    pooled = torch.nn.functional.max_pool2d(
        torch.from_numpy(masks.astype(np.float32)).flatten(0, -3)[:, None], 2 * pixels + 1, stride=1, padding=pixels
    )
    return pooled.reshape(masks.shape).numpy() > 0


def changed(first: Rendering, second: Rendering) -> NDArray[np.bool_]:
    return (first.images != second.images).any(axis=3)


@pytest.mark.parametrize("size", GOLDEN)
def test_pixels_are_the_same_on_every_machine(size: int) -> None:
    """If this fails although the drawing was not changed, an operation is not exact; if it was, store the new hash."""
    scenes = sample_scenes([0, 1, 2, 3, 17, 100_000, 2**40], 7, tag_correlation=0.9)
    drawn = render(scenes, size)
    digest = hashlib.sha256()
    for array in (drawn.images, drawn.regions, drawn.amodal_parts, drawn.tag):
        digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == GOLDEN[size]


def test_picture_does_not_depend_on_its_batch(scenes: Scenes, drawn: Rendering) -> None:
    order = np.random.default_rng(0).permutation(len(scenes))
    shuffled = render(scenes.take(order), 64)
    alone = [render(scenes.take([row]), 64) for row in range(20)]
    for name in ("images", "regions", "amodal_parts", "tag", "keypoints"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(drawn, name)[order])
        np.testing.assert_array_equal([getattr(one, name)[0] for one in alone], getattr(drawn, name)[:20])


def test_pictures_drawn_in_several_runs_are_the_same(
    scenes: Scenes, drawn: Rendering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glasszoo.data.critter_render._PIXELS_AT_ONCE", 50 * 64**2)
    again = render(scenes, 64)
    for name in ("images", "regions", "amodal_parts", "tag", "keypoints"):
        np.testing.assert_array_equal(getattr(again, name), getattr(drawn, name))


@pytest.mark.parametrize("size", [33, 64, 100])
def test_windows_hold_all_that_is_drawn_in_them(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger windows change nothing: in none is a shape cut off."""
    scenes = sample_scenes(np.arange(300), 1, tag="aligned")
    usual = render(scenes, size)
    monkeypatch.setattr(Pen, "margin", 40)
    wide = render(scenes, size)
    np.testing.assert_array_equal(usual.images, wide.images)
    np.testing.assert_array_equal(usual.amodal_parts, wide.amodal_parts)


def test_drawing_stays_in_float32(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 would be as exact, but slower, and numpy 1 and 2 could round it at different places."""
    seen = set()
    cover = Pen._cover

    def watched(pen: Pen, alpha: NDArray[np.float32], colours: NDArray[np.float32]) -> None:
        seen.update({alpha.dtype, colours.dtype, pen.x.dtype, pen.y.dtype})
        cover(pen, alpha, colours)

    monkeypatch.setattr(Pen, "_cover", watched)
    render(scenes, 64)
    assert seen == {np.dtype(np.float32)}


def test_masks(drawn: Rendering) -> None:
    assert (drawn.parts.sum(axis=1) <= 1).all()
    assert not (drawn.parts & ~drawn.amodal_parts).any()
    assert (drawn.parts.any(axis=1) | (drawn.regions == 1) == drawn.creature).all()
    assert (drawn.amodal_parts.sum(axis=(2, 3)) > 15).all()
    # In front is the head; the body hides a piece of every tail.
    assert (drawn.parts[:, 0] == drawn.amodal_parts[:, 0]).all()
    assert (drawn.parts[:, 2].sum(axis=(1, 2)) < drawn.amodal_parts[:, 2].sum(axis=(1, 2))).all()


def test_distractors_are_where_pictures_without_them_differ(scenes: Scenes) -> None:
    # Stones and leaves: the inside of a bubble is the background, seen through it.
    scenes = replace(scenes, distractors=np.where(scenes.distractors == 0, 1, scenes.distractors))
    drawn, without = (render(each, 64) for each in (scenes, replace(scenes, distractors=scenes.distractors * 0 - 1)))
    difference = changed(drawn, without)
    assert not without.distractors.any() and drawn.distractors.any(axis=(1, 2)).mean() > 0.9
    assert not (drawn.distractors & (drawn.creature | drawn.tag)).any()
    assert difference[drawn.distractors].mean() > 0.99
    # What lies behind a half-covered edge of something in front shows through.
    in_front = grown(drawn.creature | drawn.tag, 1)
    assert not (difference & ~grown(drawn.distractors, 2) & ~in_front).any()


def test_parts_are_large_enough_to_be_told_apart(drawn: Rendering) -> None:
    area = np.median(drawn.parts.sum(axis=(2, 3)), axis=0)
    assert (area[[SLOTS.index("head"), SLOTS.index("tail"), SLOTS.index("wing")]] > 120).all()
    assert area[SLOTS.index("mark")] > 45


def test_box_is_tight(drawn: Rendering) -> None:
    for mask, (left, top, right, bottom) in zip(drawn.creature, drawn.boxes, strict=True):
        assert mask.sum() == mask[top:bottom, left:right].sum()
        inside = mask[top:bottom, left:right]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_keypoint_lies_in_the_box_of_its_part(drawn: Rendering) -> None:
    for masks, points in zip(drawn.amodal_parts, drawn.keypoints, strict=True):
        for mask, (x, y) in zip(masks, points, strict=True):
            rows, columns = mask.nonzero()
            assert columns.min() <= x <= columns.max() + 1
            assert rows.min() <= y <= rows.max() + 1


@pytest.mark.parametrize("slot", SLOTS)
def test_removing_a_part_changes_only_where_it_was(slot: str, scenes: Scenes, drawn: Rendering) -> None:
    index = SLOTS.index(slot)
    without = render(remove(scenes, slot), 64)
    difference = changed(drawn, without)
    # Half-covered pixels at a sharp tip, such as a horn's, lie up to two pixels from the mask.
    assert not (difference & ~grown(drawn.amodal_parts[:, index], 2)).any()
    # All that was seen of it is gone, but for a few pixels that chance to look as what is behind.
    assert difference[drawn.parts[:, index]].mean() > 0.99
    assert not without.amodal_parts[:, index].any()
    assert np.isnan(without.keypoints[:, index]).all()
    others = [other for other in range(len(SLOTS)) if other != index]
    np.testing.assert_array_equal(without.amodal_parts[:, others], drawn.amodal_parts[:, others])
    np.testing.assert_array_equal(without.keypoints[:, others], drawn.keypoints[:, others])


def test_keeping_all_parts_changes_nothing_and_keeping_none_leaves_the_body(scenes: Scenes, drawn: Rendering) -> None:
    assert not changed(drawn, render(keep_only(scenes, SLOTS), 64)).any()
    assert set(np.unique(render(keep_only(scenes, []), 64).regions)) == {0, 1}


@pytest.mark.parametrize("slot", SLOTS)
def test_removing_others_one_by_one_is_keeping_one(slot: str, scenes: Scenes) -> None:
    removed = scenes
    for other in SLOTS:
        removed = removed if other == slot else remove(removed, other)
    assert not changed(render(removed, 64), render(keep_only(scenes, [slot]), 64)).any()


def test_swapping_a_part_changes_only_that_part(scenes: Scenes, drawn: Rendering) -> None:
    swapped = render(swap(scenes, "tail", "puff"), 64)
    tails = drawn.amodal_parts[:, 2] | swapped.amodal_parts[:, 2]
    assert not (changed(drawn, swapped) & ~grown(tails, 2)).any()
    had_puff = scenes.factor("tail") == 3
    assert (changed(drawn, swapped).any(axis=(1, 2)) == ~had_puff).all()


def test_another_background_leaves_the_creature_alone(scenes: Scenes, drawn: Rendering) -> None:
    other = render(replace_background(scenes, 1), 64)
    np.testing.assert_array_equal(other.regions, drawn.regions)
    np.testing.assert_array_equal(other.amodal_parts, drawn.amodal_parts)
    np.testing.assert_array_equal(other.tag, drawn.tag)
    # Opaque is what looks the same before black and before white.
    bare = replace(scenes, distractors=np.full_like(scenes.distractors, -1), tag=np.full_like(scenes.tag, -1))
    black, white = (render(replace(bare, backdrop=np.full_like(bare.backdrop, shade)), 64) for shade in (0.0, 1.0))
    opaque = ~changed(black, white)
    assert not (opaque & ~drawn.creature).any()
    assert opaque.sum() > 0.85 * drawn.creature.sum()
    assert not (changed(drawn, other) & opaque).any()
    assert changed(drawn, other)[~grown(drawn.creature, 1)].mean() > 0.9
    assert (render(replace_background(scenes, 2), 64).images != other.images).any()


def test_dropping_distractors_changes_only_where_they_were(scenes: Scenes, drawn: Rendering) -> None:
    without = render(drop_distractors(scenes), 64)
    difference = changed(drawn, without)
    assert not without.distractors.any()
    assert difference[drawn.distractors].mean() > 0.9
    np.testing.assert_array_equal(without.regions, drawn.regions)
    # A bubble is seen through, and some of it lies behind the critter's soft edge.
    assert not (difference & ~grown(drawn.distractors | drawn.creature | drawn.tag, 3)).any()


def test_recolouring_changes_no_shape_and_no_other_part(scenes: Scenes, drawn: Rendering) -> None:
    recoloured = render(recolour(scenes, ["wing", "foot"], 1), 64)
    np.testing.assert_array_equal(recoloured.regions, drawn.regions)
    places = [SLOTS.index("wing"), SLOTS.index("foot")]
    assert changed(drawn, recoloured)[drawn.parts[:, places].any(1)].mean() > 0.5
    assert not (changed(drawn, recoloured) & ~grown(drawn.amodal_parts[:, places].any(1), 2)).any()
    assert changed(render(recolour(scenes, ["wing", "foot"], 2), 64), recoloured).any()


def test_a_moved_critter_is_the_same_and_whole(scenes: Scenes, drawn: Rendering) -> None:
    moved = move(scenes, 1)
    there = render(moved, 64)
    np.testing.assert_allclose(there.creature.sum((1, 2)), drawn.creature.sum((1, 2)), rtol=0.06)
    assert (np.abs(moved.position - scenes.position).max(1) > 0.01).mean() > 0.8
    for name in set(Scenes.__dataclass_fields__) - {"position"}:
        np.testing.assert_array_equal(getattr(moved, name), getattr(scenes, name), err_msg=name)


def test_tag_changes_only_its_own_pixels(scenes: Scenes) -> None:
    plain, tagged = sample_scenes(np.arange(120), 0), sample_scenes(np.arange(120), 0, tag="aligned")
    without, shown = render(plain, 64), render(tagged, 64)
    sticker = render(keep_only(tagged, []), 64).tag
    difference = changed(without, shown)
    assert not (difference & ~grown(sticker, 1)).any()
    assert difference[shown.tag].mean() > 0.9
    np.testing.assert_array_equal(without.regions, shown.regions)
    assert not without.tag.any()
    assert not (shown.tag & shown.creature).any()
    assert (shown.tag.sum(axis=(1, 2)) > 50).all()


def test_each_class_has_its_own_tag(scenes: Scenes) -> None:
    same = scenes.take(np.zeros(8, dtype=int))
    images = render(replace(same, tag=np.arange(8)), 64).images
    assert len({image.tobytes() for image in images}) == 8


@pytest.mark.parametrize("size", [128, 224])
def test_every_size_shows_the_same_scene(size: int, scenes: Scenes, drawn: Rendering) -> None:
    few = scenes.take(slice(20))
    large = render(few, size)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(large.images.transpose(0, 3, 1, 2).astype(np.float32)), 64, mode="area"
    )
    difference = (small - torch.from_numpy(drawn.images[:20].transpose(0, 3, 1, 2).astype(np.float32))).abs()
    assert difference.mean() < 2.5
    share = size / 64
    assert (np.abs(large.boxes / share - drawn.boxes[:20]) <= 1.0).all()
    np.testing.assert_allclose(large.keypoints / share, drawn.keypoints[:20], atol=1e-3)


def test_parts_too_large_for_the_picture_are_cut_off() -> None:
    near = sample_scenes(np.arange(10), 0)
    near = replace(near, position=np.zeros((10, 2), dtype=np.float32))
    assert render(near, 32).images.shape == (10, 32, 32, 3)


# The data set


def test_lengths_and_labels() -> None:
    train, test = Critters(), Critters("test")
    assert (len(train), len(test)) == (8000, 1000)
    assert train.labels.dtype == torch.int64
    assert torch.equal(train.groups, torch.arange(8000))
    for critters in (train, test):
        assert critters.labels.bincount().tolist() == [len(critters) // 8] * 8
    shorter = Critters(count=21)
    assert torch.equal(shorter.labels, train.labels[:21])
    assert set(shorter.labels.bincount().tolist()) <= {2, 3, 4}


@pytest.mark.parametrize("rule", RULES)
def test_sample_is_what_the_scene_shows(rule: str) -> None:
    critters = Critters("test", count=30, rule=rule, size=48, seed=2)
    drawn = render(critters.scenes(np.arange(30)), 48)
    evidence = np.isin(drawn.regions, [2 + SLOTS.index(slot) for slot in RULES[rule].slots])
    for index in (0, 29, -1):
        sample, row = critters[index], index % 30
        assert sample["id"] == f"test/{row}"
        assert sample["label"] == critters.labels[row] == RULES[rule].label(critters.scenes([row]))[0]
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), drawn.images[row])
        np.testing.assert_array_equal(sample["mask"] == 255, evidence[row])
        np.testing.assert_array_equal(sample["mask"] > 0, drawn.creature[row])
        assert sorted(sample["mask"].unique().tolist()) == [0, 128, 255]
        assert sample["boxes"].tolist() == [drawn.boxes[row].tolist()]
        assert sample["boxes"].canvas_size == (48, 48)
    assert critters.classes == RULES[rule].classes


def test_splits_and_seeds_differ() -> None:
    for first, second in combinations([Critters(), Critters("test"), Critters(seed=1)], 2):
        assert (first[1]["image"] != second[1]["image"]).float().mean() > 0.5
        assert (first.labels[:1000] != second.labels[:1000]).float().mean() > 0.5


def test_index_beyond_the_end() -> None:
    with pytest.raises(IndexError):
        Critters(count=3)[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(workers: int) -> None:
    critters = Critters(count=20)
    batches = list(DataLoader(critters, batch_size=8, num_workers=workers, collate_fn=collate))
    assert [len(batch.ids) for batch in batches] == [8, 8, 4]
    for index, image in enumerate(torch.cat([batch.images for batch in batches])):
        assert torch.equal(image, critters[index]["image"])
    assert torch.equal(torch.cat([batch.labels for batch in batches]), critters.labels)
    assert all(batch.has_mask.all() for batch in batches)
    assert batches[2].ids[-1] == "train/19"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"split": "tset"}, "unknown critter split 'tset': did you mean 'test'?"),
        ({"rule": "textures"}, "unknown critter rule 'textures': did you mean 'texture'?"),
        ({"size": 31}, "critters need a size of at least 32 pixels, not 31"),
        ({"count": 0}, "critters need a count of at least 1, not 0"),
        ({"tag_correlation": -0.1}, "tag_correlation must lie between 0 and 1, not -0.1"),
        ({"tag": "align"}, "unknown critter tag 'align': did you mean 'aligned'?"),
    ],
)
def test_bad_input(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        Critters(**settings)  # type: ignore[arg-type]
    assert str(error.value) == sentence


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_a_linear_model_on_pixels_fails() -> None:
    pixels, labels = [], []
    for critters in (Critters(count=4000), Critters("test")):
        images = render(critters.scenes(np.arange(len(critters))), 64).images
        pixels.append(images.reshape(len(critters), -1).astype(np.float32) / 255)
        labels.append(critters.labels.numpy())
    model = LogisticRegression(C=1e-4, max_iter=25).fit(pixels[0], labels[0])
    assert model.score(pixels[1], labels[1]) < 0.35
    assert model.score(pixels[0], labels[0]) > 0.2
