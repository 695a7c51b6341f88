"""Recipes: typed, overridden, written back; what is wrong in one is named."""

from pathlib import Path

import pytest

from glasszoo.common.errors import InputError
from glasszoo.heads import Phase
from glasszoo.training import list_recipes, load_recipe
from glasszoo.training.phases import planned


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return str(path)


GOOD = """
data: {name: critters, options: {size: 32}}
model: {backbone: test_resnet, image_size: [32, 64]}
optimizer: {lr: 3e-4}
phases:
  - {name: warm, epochs: 1, trains: ["head.*"], lr_scale: {"head.*": 10}}
  - {name: joint}
"""


def test_a_recipe_is_typed_and_comes_back_from_yaml(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    assert recipe.optimizer.lr == 3e-4 and recipe.model.image_size == (32, 64)
    assert recipe.phases == (Phase("warm", 1, ("head.*",), {"head.*": 10.0}), Phase("joint"))
    assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe


def test_overrides(tmp_path: Path) -> None:
    recipe = load_recipe(
        written(tmp_path, GOOD),
        ["model.head=black_box", "optimizer.lr=1e-2", "data.options.count=7", "ema_decay=0.9", "model.image_size=32"],
    )
    assert recipe.model.head == "black_box" and recipe.optimizer.lr == 0.01 and recipe.ema_decay == 0.9
    assert recipe.data.options == {"size": 32, "count": 7} and recipe.model.image_size == 32


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert sum(phase.epochs or 0 for phase in planned(recipe.phases or [Phase()], recipe.epochs)) == recipe.epochs


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (GOOD, ["optimiser.lr=1"], "unknown key in .*own.yaml 'optimiser': did you mean 'optimizer'"),
        (GOOD, ["optimizer.learning_rate=1"], "unknown key in .*: optimizer 'learning_rate'"),
        (GOOD, ["model.head.name=cam"], "unknown key|a text expected"),
        (GOOD, ["optimizer.lr.x=cam"], "override 'optimizer.lr.x': 'lr' holds no keys"),
        (GOOD, ["epochs"], "'epochs': KEY=VALUE expected"),
        (GOOD, ["epochs=0"], "epochs must be at least 1"),
        (GOOD, ["optimizer.accumulate=0"], "accumulate must be at least 1"),
        (GOOD, ["data.on_error=ignore"], "unknown value of .*on_error 'ignore': known: raise, skip"),
        ("data: [", [], "own.yaml is no YAML"),
        ("hello", [], "holds no recipe"),
        ("model: {backbone: x}", [], "'data' is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(written(tmp_path, text), overrides)


def test_unknown_recipes_list_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown recipe 'criters': did you mean 'critters'"):
        load_recipe("criters")


def test_phases_share_the_open_epochs() -> None:
    phases = [Phase("a", 2), Phase("b"), Phase("c"), Phase("d", 1)]
    assert [phase.epochs for phase in planned(phases, 10)] == [2, 4, 3, 1]
    assert [phase.epochs for phase in planned([Phase()], 3)] == [3]
    for wrong, epochs in ((phases, 4), ([Phase("a", 2)], 3), ([Phase("a", 4)], 3), ([], 3)):
        with pytest.raises(InputError, match=f"do not fill {epochs} epochs"):
            planned(wrong, epochs)


@pytest.mark.parametrize(
    ("shares", "epochs", "expected"),
    [
        ((0.2, 0.6, 0.2), 10, [2, 6, 2]),
        ((0.2, 0.6, 0.2), 3, [1, 1, 1]),
        ((0.01, 1.0, 0.01), 5, [1, 3, 1]),
        ((1.0, 1.0), 5, [3, 2]),
    ],
)
def test_open_phases_share_the_epochs(shares: tuple[float, ...], epochs: int, expected: list[int]) -> None:
    phases = [Phase(str(place), share=share) for place, share in enumerate(shares)]
    assert [phase.epochs for phase in planned(phases, epochs)] == expected
    fixed = planned([Phase("one", 2), *phases], epochs + 2)
    assert [phase.epochs for phase in fixed] == [2, *expected]


def test_patches_are_deleted_from_images_alone(tmp_path: Path) -> None:
    text = written(tmp_path, GOOD)
    assert load_recipe(text).augmentation.patch_deletion == 0
    assert load_recipe(text, ["augmentation.patch_deletion=0.5"]).augmentation.patch_deletion == 0.5
    with pytest.raises(InputError, match="augmentation.patch_deletion is a probability, got 2"):
        load_recipe(text, ["augmentation.patch_deletion=2"])
    with pytest.raises(InputError, match="patch_deletion needs images, but a probe"):
        load_recipe(text, ["augmentation.patch_deletion=0.5", "probe=true"])
