"""Checkpoints that come with glasszoo, in the folder `zoo`: `<head>_<backbone>.<recipe>_<data>`, no download."""

from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

from .card import CardFacts, read_facts
from .layout import CONFIG, WEIGHTS

DEFAULT = "cam_mobilenetv2_100.coral_in1k"  # what explains a photograph when no model is named
_ZOO = Path(str(files(__name__.partition(".")[0]) / "zoo"))


@dataclass(frozen=True)
class Released:
    """A checkpoint that comes with glasszoo."""

    name: str
    folder: Path
    megabytes: float  # of its weights
    facts: CardFacts

    @property
    def judged_on(self) -> str | None:
        """The data of the last top-1 in its card: without it, no number says anything."""
        found = [known.data for known in self.facts.metrics if known.name == "top1"]
        return found[-1] if found else None

    def score(self, metric: str, map: str | None = None) -> float | None:
        """The last number of `metric` in its card, of the model or of one of its maps; None where there is none."""
        found = [known.value for known in self.facts.metrics if known.name == metric and known.map == map]
        return found[-1] if found else None


def list_pretrained(pattern: str = "*") -> list[str]:
    """Names of the checkpoints that come with glasszoo and match `pattern` (fnmatch), for `load_pretrained`."""
    names = (path.parent.name for path in _ZOO.glob(f"*/{CONFIG}"))
    return sorted(name for name in names if fnmatch(name, pattern))


def released_folder(name: str) -> Path:
    """The folder of the checkpoint `name`, one of `list_pretrained`."""
    return _ZOO / name


def released(name: str) -> Released:
    """What is known of the checkpoint `name`, one of `list_pretrained`."""
    folder = released_folder(name)
    return Released(name, folder, (folder / WEIGHTS).stat().st_size / 1e6, read_facts(folder))
