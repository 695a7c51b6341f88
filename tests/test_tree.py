"""The tree: who may import whom, what ships, and that the root holds no stray module."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import glasszoo

ROOT = Path(__file__).parents[1]
# What each folder may use of the others (CONTRIBUTING.md, "The tree").
MAY_IMPORT = {
    "common": set[str](),
    "heads": {"common"},
    "models": {"common", "heads"},
    "data": {"common"},
    "evaluation": {"common", "heads", "models", "data"},
    "training": {"common", "heads", "models", "data", "evaluation"},
    "configs": set[str](),
    "zoo": set[str](),
    "commands": {"common", "heads", "models", "data", "evaluation", "training"},
}
FILES = [path.relative_to(ROOT) for folder in MAY_IMPORT for path in sorted((ROOT / folder).glob("**/*.py"))]


def imports(path: Path) -> list[tuple[str, int]]:
    """Modules that a file imports from glasszoo: (dotted name below glasszoo, level of a relative import or 0)."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level))
        elif isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
    return [(name, level) for name, level in found if level or name.partition(".")[0] == "glasszoo"]


def configuration() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_flow_one_way(path: Path) -> None:
    own = path.parts[0]
    for name, level in imports(path):
        assert level, f"{path} imports {name} by its absolute name; inside the package imports are relative"
        if level == 2:
            other = name.partition(".")[0]
            assert other in MAY_IMPORT[own], f"{path}: {own} may not use {other or 'the root'}"
        assert level <= 2


def test_every_folder_is_known_and_listed() -> None:
    """The package list of setup.cfg against the folders: nothing is forgotten, nothing else ships."""
    listed = set(configuration()["options"]["packages"].split())
    assert listed == {"glasszoo", *(f"glasszoo.{folder}" for folder in MAY_IMPORT)}
    holding_code = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py")}
    hidden = {folder for folder in holding_code if folder.startswith((".", "build", "dist", "runs"))}
    others = {folder for folder in holding_code if folder.split("/")[0] in ("tests", "benchmarks", "docs")}
    assert holding_code - hidden - others <= set(MAY_IMPORT)


def test_the_root_holds_no_stray_module() -> None:
    """Every .py file in the root would ship as a module of glasszoo."""
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_pytest_is_kept_from_importing_the_root() -> None:
    """Else the root is imported under the folder's name, and every registry exists twice."""
    assert not (ROOT / "tests" / "__init__.py").exists()
    assert (ROOT / "tests" / "pytest.ini").read_text().strip() == "[pytest]"
    assert "--confcutdir=tests" in configuration()["tool:pytest"]["addopts"]
    assert [name for name in sys.modules if name in ("heads", "models", "training", ROOT.name)] == []


def test_importing_glasszoo_is_light() -> None:
    """Neither wandb nor any extra, nor what takes seconds; the names are there all the same."""
    heavy = ("torch", "timm", "wandb", "captum", "matplotlib", "sklearn")
    code = f"import sys, glasszoo; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name in glasszoo.__all__:
        assert getattr(glasszoo, name) is not None and name in dir(glasszoo)
    assert glasszoo.models.create_model is glasszoo.create_model
    with pytest.raises(AttributeError, match="has no attribute 'create_modle'"):
        getattr(glasszoo, "create_modle")  # noqa: B009


def test_files_are_small_rooms() -> None:
    long = {str(path): len((ROOT / path).read_text().splitlines()) for path in FILES}
    assert {path: lines for path, lines in long.items() if lines > 320} == {}
