"""What code ran, and on what: written beside every number and into every model card."""

import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

_ROOT = Path(__file__).parents[1]


@cache
def code_version() -> str:
    """Glasszoo's version, and the git commit where it runs from a checkout ("-dirty": files were changed since)."""
    package = __name__.partition(".")[0]
    commit = _commit(_ROOT)
    return f"{package} {sys.modules[package].__version__}" + (f", commit {commit}" if commit else "")


def device_name(device: torch.device) -> str:
    """What computes there, as "cpu (AMD EPYC 9B14, 16 threads)" or "cuda (NVIDIA H100)"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    model = _cpu_model() or platform.processor() or platform.machine()
    return f"{device.type} ({model}, {threads} thread{'s' if threads > 1 else ''})"


def _commit(root: Path) -> str | None:
    """The commit of the checkout whose top is `root`; one that merely holds the installed package is not ours."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None
    return _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str | None:
    """Linux names the processor in a file alone."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
