"""The one seam to Weights & Biases: off unless asked, imported only then, never a prompt, never the end of a run."""

import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from tqdm import tqdm

from ..common.environment import code_version
from ..common.errors import unknown_name
from ..common.fetching import one_line
from ..common.processes import is_first
from ..models import read_facts
from ..models.artifacts import artifact_name
from ..models.card import VALIDATION
from ..models.layout import is_checkpoint_file

MODES = ("disabled", "offline", "online")
PROJECT = "glasszoo"
CONNECT_WITHIN = 10.0  # seconds, at the start
_UPLOAD_WITHIN = 600.0  # seconds, at the end; what is left lies in the folder, for `wandb sync`
_LONGEST_TAG = 64  # W&B's own limit


class WandbRun:
    """A W&B run, or nothing at all in mode "disabled" and in every process but the first.

    Curves stand over the number of the epoch. A column of metrics.csv is a curve of the section `val`, `train` or
    `change` (what projection and pruning reported): `val/top1`, `train/loss`, `train/lr`, `change/prototypes`. Where a
    run has several phases, each curve stands once more in a section of its phase, `phase_joint/val_top1`; `phase` is
    the phase's number, from 1 on. The summary keeps the highest top-1 and the lowest loss, else the last number.

    The step of W&B is the epoch, so an epoch that a killed run reported before it could save is there once. Of an
    offline run each part is a folder of its own, with the same id; `wandb sync` joins them.

    W&B never stops the caller: without key or network an online run becomes an offline one, and whatever the client
    raises later ends the reporting, each with a sentence on stderr.

    Raises:
        InputError: Unknown mode.
    """

    def __init__(self, mode: str) -> None:
        if mode not in MODES:
            raise unknown_name("wandb mode", mode, MODES)
        self._mode: Any = mode
        self._run: Any = None
        self._phases: Sequence[str] = ()
        self._defined: set[str] = set()
        self._waiting: dict[str, Any] = {}

    def start(
        self,
        folder: Path,
        config: Mapping[str, Any],
        run_id: str | None = None,
        *,
        job_type: str = "train",
        labels: Sequence[str] = (),
        phases: Sequence[str] = (),
    ) -> str | None:
        """Open the run, or the one of that id again; returns its id, `run_id` where nothing is reported.

        Args:
            folder: Holds the run's files, below `wandb/`, and gives it its name.
            config: All that decides what the run does.
            run_id: What an earlier `start` returned.
            job_type: Kind of run.
            labels: Head, backbone and data, say: tags one by one, and together the group of runs that differ by seed.
            phases: Names of the training phases, in order.
        """
        if self._mode == "disabled" or not is_first():
            return run_id
        self._phases = phases
        try:
            self._open(folder, config, run_id, job_type, labels)
        except Exception as error:  # whatever it is, the caller goes on
            self._give_up(error)
        return self._run.id if self.is_reporting else run_id

    @property
    def is_reporting(self) -> bool:
        """Whether what is logged now goes anywhere."""
        return self._run is not None

    def log(self, row: Mapping[str, Any]) -> None:
        """Log an epoch, a row of metrics.csv, and with it what was added since the one before."""
        self._guarded(lambda: self._run.log(self._curves(row) | self._taken(), step=row["epoch"], commit=True))

    def add(self, make: Callable[[], dict[str, Any]]) -> None:
        """Log what `make` returns (pictures, tables) with the next epoch, or at the end; not called if not needed."""
        self._guarded(lambda: self._waiting.update(make()))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Put numbers about the whole run into its summary."""
        self._guarded(lambda: self._run.summary.update(dict(values)))

    def log_checkpoint(self, folder: Path, name: str, epoch: int, aliases: Sequence[str] = ()) -> None:
        """Log the checkpoint of an epoch as an artifact of type "model", which `load_pretrained` takes.

        It is wandb:ENTITY/PROJECT/NAME:ALIAS, `name` without characters that cannot be in one; the alias is `latest`,
        the epoch as `epoch-12`, or one of `aliases`.
        """
        self._guarded(lambda: self._log_checkpoint(folder, name, epoch, aliases))

    def finish(self, failed: bool = False, within: float | None = None) -> bool:
        """Log what waits, and close the run, marked as failed or not; what is still to be uploaded may take a while.

        Returns whether it is closed: after `within` seconds, if given, it goes on in the background.
        """
        self._guarded(lambda: self._run.log(self._taken()) if self._waiting else None)
        run, self._run = self._run, None

        def close() -> None:
            try:
                run.finish(exit_code=int(failed))
            except Exception as error:  # whatever it is, the caller goes on
                self._give_up(error)

        if run is None:
            return True
        closing = Thread(target=close, daemon=True)
        closing.start()
        closing.join(within)
        if closing.is_alive():
            _tell("not all has been uploaded to W&B yet; what is left lies in the run's folder, for `wandb sync`")
        return not closing.is_alive()

    def _open(
        self, folder: Path, config: Mapping[str, Any], run_id: str | None, job_type: str, labels: Sequence[str]
    ) -> None:
        import wandb

        labels = [label[:_LONGEST_TAG] for label in labels if label]
        choices: dict[str, Any] = {
            "project": PROJECT,
            "name": folder.name,
            "dir": folder.resolve(),  # the client's own process may stand elsewhere
            "config": dict(config),
            "job_type": job_type,
            "group": " ".join(labels) or None,
            "tags": list(dict.fromkeys(labels)),
            # Chosen here: what a failed attempt to connect left behind belongs to the same run.
            "id": run_id or secrets.token_hex(6),
            "resume": "allow" if run_id else None,
            "settings": wandb.Settings(
                silent=True, console="off", init_timeout=CONNECT_WITHIN, finish_timeout=_UPLOAD_WITHIN
            ),
        }
        folder.mkdir(parents=True, exist_ok=True)
        if self._mode == "online":
            try:
                wandb.setup(settings=wandb.Settings(silent=True))
                # wandb.init would ask for a key at a terminal.
                if not wandb.login(prompt=False, verify=False):
                    raise wandb.errors.UsageError("no API key is known; `wandb login` stores one")
                self._run = wandb.init(mode="online", **choices)
                return
            except Exception as error:  # whatever it is, training goes on
                _tell(f"W&B cannot be reached ({one_line(error)}): this run is kept offline, for `wandb sync`")
                wandb.teardown()  # else the client writes what follows where the failed attempt was to go
        self._run = wandb.init(mode="offline", **choices)

    def _curves(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers of a row by the names of their curves, each defined when it first comes."""
        numbers = {name: value for name, value in row.items() if name not in ("epoch", "phase")}
        values = {curve_name(name): value for name, value in numbers.items()}
        if len(self._phases) > 1:
            section = "phase_" + re.sub(r"\W+", "_", row["phase"])
            values |= {f"{section}/{name}": value for name, value in numbers.items()}
            values["phase"] = self._phases.index(row["phase"]) + 1
        for name in sorted(values.keys() - self._defined):
            self._run.define_metric(name, step_metric="epoch", summary=_summary(name))
        self._defined |= values.keys()
        return values | {"epoch": row["epoch"]}

    def _taken(self) -> dict[str, Any]:
        waiting, self._waiting = self._waiting, {}
        return waiting

    def _log_checkpoint(self, folder: Path, name: str, epoch: int, aliases: Sequence[str]) -> None:
        import wandb

        facts = read_facts(folder)
        judged = {metric.name: metric.value for metric in facts.metrics if metric.split == VALIDATION}
        metadata = {
            "head": facts.model and facts.model.head,
            "backbone": facts.model and facts.model.architecture,
            "data": facts.data and facts.data.name,
            "seed": facts.seed,
            "epoch": epoch,
            **({"val_map": judged["map"]} if "map" in judged else {"val_top1": judged.get("top1")}),
            "code": facts.code or code_version(),  # version and commit
        }
        artifact = wandb.Artifact(artifact_name(name), type="model", metadata=metadata)
        for path in sorted(folder.rglob("*")):
            if is_checkpoint_file(inside := path.relative_to(folder).as_posix()):
                artifact.add_file(str(path), inside)
        self._run.log_artifact(artifact, aliases=list(dict.fromkeys(["latest", f"epoch-{epoch}", *aliases])))

    def _guarded(self, act: Callable[[], Any]) -> None:
        """Do it where there is a run; an error of the client ends the reporting and nothing else."""
        if self.is_reporting:
            try:
                act()
            except Exception as error:  # whatever it is, the caller goes on
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        _tell(f"nothing more is reported to W&B, all else goes on: {one_line(error)}")


def curve_name(column: str) -> str:
    """The curve of a column of metrics.csv: "val_top1" is `val/top1`; see `WandbRun`."""
    if re.search("projection|pruning", column) or column == "prototypes":
        return f"change/{column}"
    section = "val" if column.startswith("val_") else "train"
    return f"{section}/{column.removeprefix(f'{section}_')}"


def _summary(curve: str) -> str | None:
    """What the summary keeps of a curve; None: its last value."""
    name = curve.rpartition("/")[2]
    if name in ("top1", "val_top1", "train_top1", "map", "val_map", "label_accuracy"):
        return "max"
    return "min" if name in ("loss", "val_loss", "train_loss") else None


def _tell(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)
