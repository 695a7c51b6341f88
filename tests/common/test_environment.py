"""What code ran, and on what."""

import subprocess
from pathlib import Path

import pytest
import torch

import glasszoo
from glasszoo.common import environment


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    git(tmp_path, "tag", "v1")  # a commit is named by its hash, whatever tags there are
    return tmp_path


def test_the_commit_is_the_checkouts_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setattr(environment, "_ROOT", checkout)
    environment.code_version.cache_clear()
    assert environment.code_version() == f"glasszoo {glasszoo.__version__}, commit {commit}"
    (checkout / "code.py").write_text("x = 2\n")
    environment.code_version.cache_clear()
    assert environment.code_version().endswith(f"{commit}-dirty")
    monkeypatch.setattr(environment, "_ROOT", checkout / "env" / "glasszoo")
    (checkout / "env" / "glasszoo").mkdir(parents=True)
    environment.code_version.cache_clear()
    assert environment.code_version() == f"glasszoo {glasszoo.__version__}", "installed inside another's checkout"
    environment.code_version.cache_clear()


def test_the_cpu_is_named() -> None:
    name = environment.device_name(torch.device("cpu"))
    assert name.startswith("cpu (") and f"{torch.get_num_threads()} thread" in name and len(name) > 15
