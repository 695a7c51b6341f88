"""Evaluations that are killed, and evaluations that several processes share: the same numbers as in one go."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.samples import Batch, ImageDataset, Unreadable
from glasszoo.evaluation import Conventions, Evaluation, MapMethod, evaluate
from glasszoo.evaluation.methods import METHODS
from glasszoo.evaluation.parts import Part, Reading, joined, worked_through
from glasszoo.models import ImageClassifier, Preprocessing

BATCH = 4


def made() -> ImageClassifier:
    torch.manual_seed(0)
    preprocessing = Preprocessing((3, 64, 64), crop_pct=1.0)
    return glasszoo.create_model("test_byobnet", num_classes=8, preprocessing=preprocessing).eval()


def some_data() -> ImageDataset:
    return create_dataset("critters", "test", count=14)


def evaluated(**options: Any) -> Evaluation:
    conventions = Conventions(steps=4, bootstrap=50)
    methods = ["built-in", "random"]
    return evaluate(
        made(), some_data(), methods=methods, conventions=conventions, batch_size=BATCH, progress=False, **options
    )


def assert_same(one: Evaluation, two: Evaluation) -> None:
    assert (one.ids, one.explained_ids) == (two.ids, two.explained_ids)
    torch.testing.assert_close(one.logits, two.logits, atol=1e-6, rtol=0)  # other threads round otherwise
    for ours, theirs in zip(one.methods, two.methods, strict=True):
        assert ours.metrics == theirs.metrics and len(ours.scores) == 4
        for name, scores in ours.scores.items():
            torch.testing.assert_close(scores, theirs.scores[name], atol=1e-6, rtol=0, equal_nan=True)
        for name, curve in ours.curves.items():
            torch.testing.assert_close(curve, theirs.curves[name], atol=1e-6, rtol=0)
        for passes in ("forwards", "backwards"):
            assert ours.cost[passes] == theirs.cost[passes]


class Killed(Exception):
    """As good as a signal."""


def test_a_killed_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluated()
    seen: list[int] = []
    limit = 2

    def mortal(model: ImageClassifier) -> MapMethod:
        def explain(images: torch.Tensor, classes: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            seen.extend(indices.tolist())
            if len(seen) > (limit + 1) * BATCH + 1:  # before the first call one to warm up, and one for memory
                raise Killed
            return model(images, classes).maps[:, 0]

        return MapMethod("built-in", "built-in", explain, True)

    monkeypatch.setitem(METHODS, "built-in", mortal)
    with pytest.raises(Killed):
        evaluated(store=tmp_path)
    files = sorted(tmp_path.rglob("explaining/*.safetensors"))
    assert len(files) == limit
    files[1].write_bytes(files[1].read_bytes()[:40])  # cut off by a crash of the machine
    before, limit = seen[:BATCH], 99
    seen.clear()
    assert_same(evaluated(store=tmp_path), whole)
    assert not set(before) & set(seen), "what was done is not done again"
    assert not list(tmp_path.rglob("*.safetensors")), "what has become a result is not kept"


def test_parts_of_other_choices_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glasszoo.evaluation.benchmark.forget", lambda store: None)
    evaluated(store=tmp_path)
    once = set(tmp_path.iterdir())
    evaluated(store=tmp_path)
    assert set(tmp_path.iterdir()) == once
    evaluated(store=tmp_path, max_explained=3)
    assert len(set(tmp_path.iterdir()) - once) == 1


class Holes:
    """critters with images that cannot be read, one whole batch of them among these."""

    def __init__(self) -> None:
        self.inner = some_data()
        self.classes, self.labels, self.groups = self.inner.classes, self.inner.labels, self.inner.groups

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return Unreadable(str(index), f"{index} is torn") if index in (1, 4, 5, 6, 7) else self.inner[index]


def test_a_batch_without_images_does_not_shift_the_others() -> None:
    def work(batch: Batch) -> Part:
        return Part(batch.ids, {"labels": batch.labels})

    dataset = Holes()
    parts, unreadable = worked_through(
        work, made(), dataset, range(14), Reading(4, on_error="skip"), title="reading", progress=False
    )
    assert list(unreadable) == ["1", "4", "5", "6", "7"]
    assert [len(part.ids) for part in parts] == [3, 4, 2]
    assert torch.equal(joined(parts)["labels"], dataset.labels[[0, 2, 3, *range(8, 14)]])


def share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = evaluated(store=Path(folder) / "parts")
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    alone = evaluated()
    multiprocessing.spawn(share, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{rank}.pt", weights_only=False), alone)
    assert not list(tmp_path.rglob("*.safetensors"))
