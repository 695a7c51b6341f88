"""Training on features computed once: the same as training with the backbone frozen, only sooner."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.models import Backbone
from glasszoo.training import Trainer, load_recipe

RECIPE = """
data: {name: critters, options: {size: 64, count: 80}, validation: 0.25, batch_size: 16}
model: {backbone: test_resnet, image_size: 64, crop_pct: 1.0}
optimizer: {lr: 1e-2}
augmentation: {scale: [1.0, 1.0], ratio: [1.0, 1.0], hflip: 0.0}
epochs: 2
"""


def fitted(folder: Path, name: str, *overrides: str) -> Trainer:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    trainer = Trainer(load_recipe(str(path), overrides), folder / name, shows_progress=False)
    trainer.fit()
    return trainer


def history(trainer: Trainer) -> list[dict[str, Any]]:
    clocks = ("images_per_second", "waiting_for_data")
    return [{key: value for key, value in row.items() if key not in clocks} for row in trainer.progress.history]


def test_a_probe_is_training_with_the_backbone_frozen(tmp_path: Path) -> None:
    """The same order, the same batches, the same steps; images that nothing augments go through a frozen backbone."""
    probed = fitted(tmp_path, "probe", "probe=true")
    frozen = fitted(tmp_path, "frozen", "phases=[{trains: ['head.*']}]")
    for mine, theirs in zip(history(probed), history(frozen), strict=True):
        for key in ("train_loss", "val_loss", "train_top1", "val_top1"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4), key
    for name, tensor in probed.model.state_dict().items():
        torch.testing.assert_close(tensor, frozen.model.state_dict()[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("head", ["cam", "black_box", "multiscale_cam"])
def test_the_backbone_stays_as_it_was_and_the_head_learns(tmp_path: Path, head: str) -> None:
    trainer = fitted(tmp_path, "run", "probe=true", f"model.head={head}")
    torch.manual_seed(0)
    other = fitted(tmp_path, "other", "probe=true", f"model.head={head}", "epochs=1")
    own = {id(parameter) for parameter in trainer.model.get_classifier().parameters()}
    learned = 0
    for name, tensor in trainer.model.state_dict(keep_vars=True).items():
        is_equal = torch.equal(tensor, other.model.state_dict()[name])
        assert is_equal or id(tensor) in own, name
        learned += not is_equal
    assert learned
    saved = glasszoo.load_pretrained(f"local-dir:{tmp_path / 'run' / 'best'}")
    assert saved(torch.zeros(1, 3, 64, 64), 0).logits.shape == (1, 8)


def test_features_are_kept_for_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = fitted(tmp_path, "first", "probe=true", f"feature_cache={cache}")
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 2  # training and validation
    fitted(tmp_path, "seed", "probe=true", f"feature_cache={cache}", "seed=1", "epochs=1")
    assert len(list(cache.iterdir())) == 4  # another seed carves another validation split
    stages = [name for path in files for name in load_file(path) if name.startswith("stage")]
    assert stages == ["stage_00", "stage_00"]

    def refuse(self: Backbone, images: torch.Tensor) -> None:
        raise AssertionError("the backbone was run")

    monkeypatch.setattr(Backbone, "forward", refuse)
    second = fitted(tmp_path, "second", "probe=true", f"feature_cache={cache}")
    assert history(second) == history(first)
    other_head = fitted(tmp_path, "third", "probe=true", f"feature_cache={cache}", "model.head=black_box")
    assert history(other_head) == history(first)  # the same function on the same features
    with pytest.raises(AssertionError, match="the backbone was run"):
        fitted(tmp_path, "fourth", "probe=true", f"feature_cache={cache}", "model.image_size=96")


def test_evidence_terms_know_where_the_cause_lies(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "run", "probe=true", "loss_weights.evidence_energy=1")
    assert 0 < history(trainer)[-1]["evidence_energy"] < 1


def test_a_phase_that_trains_the_backbone_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="phase 'train' trains nothing"):
        fitted(tmp_path, "run", "probe=true", "phases=[{trains: ['backbone.*']}]")
