"""Shared by the tests of data sets."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone, not the user's."""
    monkeypatch.setenv("GLASSZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
