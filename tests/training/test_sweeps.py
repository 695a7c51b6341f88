"""The sweeps that ship: each is one of W&B's, and each of its runs is one of ours."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

import glasszoo
from glasszoo.heads import list_heads
from glasszoo.models import BLACK_BOX
from glasszoo.training import list_recipes, load_recipe
from glasszoo.training.building import build_model
from glasszoo.training.phases import planned

FOLDER = Path(glasszoo.__file__).parent / "configs" / "sweeps"
FILES = sorted(FOLDER.glob("*.yaml"))


def config_of(path: Path) -> dict[str, Any]:
    config = load_sweep_config(str(path))
    assert config is not None
    return config


def runs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What W&B's agent is told to run: all of a grid."""
    values = [[(name, value) for value in choice["values"]] for name, choice in config["parameters"].items()]
    return [{name: {"value": value} for name, value in chosen} for chosen in itertools.product(*values)]


def command_of(config: dict[str, Any], args: dict[str, Any], program: str) -> list[str]:
    """As `wandb agent` puts it together."""
    macros = create_sweep_command_args({"args": args}) | {"program": [program]}
    parts: list[str] = []
    for part in create_sweep_command(list(config["command"])):
        parts += macros[part[2:-1]] if part.startswith("${") and part.endswith("}") else [part]
    return parts


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_keeps_to_the_schema_of_w_and_b(path: Path) -> None:
    sweeps = pytest.importorskip("sweeps", reason="W&B's schema is in the package sweeps")
    assert sweeps.schema_violations_from_proposed_config(config_of(path)) == []
    assert sweeps.schema_violations_from_proposed_config(config_of(path) | {"metod": "grid"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_is_a_command_of_ours(path: Path, tmp_path: Path) -> None:
    config = config_of(path)
    program = tmp_path / "glasszoo"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    assert config["method"] == "grid" and config["program"] == "glasszoo"
    environment = os.environ | {"WANDB_RUN_ID": "abc", "COFFEE": "/a folder", "WEIGHTS": "local-dir:/w"}
    everything = runs(config)
    arguments = command_of(config, everything[-1], str(program))
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    told: list[str] = yaml.safe_load(done.stdout)
    assert told[:1] == ["train"] and told[1] in list_recipes()
    assert told[told.index("--out") + 1] == "runs/sweeps/abc" and told[told.index("--wandb") + 1] == "online"
    if "--data" in told:
        assert told[told.index("--data") + 1] == "/a folder"
    overrides = [word for word in told[2:] if "=" in word]
    assert overrides == [f"{name}={choice['value']}" for name, choice in everything[-1].items()]
    seen = {told[1]: [create_sweep_command_args({"args": args})["args_no_hyphens"] for args in everything]}
    recipes = [load_recipe(told[1], own) for own in seen[told[1]]]
    assert len({recipe.to_yaml() for recipe in recipes}) == len(everything)
    for head, recipe in {recipe.model.head: recipe for recipe in recipes}.items():
        model = build_model(recipe.model, ("a", "b", "c"))
        assert model.config.head == head
        planned(model.phases(), recipe.epochs)


def test_critters_are_swept_over_every_head() -> None:
    values = config_of(FOLDER / "critters_heads.yaml")["parameters"]["model.head"]["values"]
    assert values == [*list_heads(), BLACK_BOX]


def test_sweeps_are_no_recipes() -> None:
    assert FILES and not {path.stem for path in FILES} & set(list_recipes())
