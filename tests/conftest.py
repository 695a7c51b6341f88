"""What several test files need: small models, real data where it is at hand, and few threads."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Nothing may be fetched while testing; without this the hub's client retries for half a minute.
os.environ["HF_HUB_OFFLINE"] = "1"

# Small tensors on many threads wait for each other more than they compute; under xdist the cores are taken already.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

# No test may depend on how busy the machine is.
settings.register_profile("glasszoo", deadline=None)
settings.load_profile("glasszoo")

SHARED = Path(os.environ.get("GLASSZOO_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """A path below the developers' shared folder; the test skips, with the reason, where that is absent."""

    def find(relative: str) -> Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"{relative} is not at hand: users do not have the developers' shared folder")
        return path

    return find
