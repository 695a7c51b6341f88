"""glasszoo train: a model by a recipe."""

import argparse
import os
from pathlib import Path

from ..common.stopping import Stopped, StopRequest, leave
from .options import add_device, add_wandb

DESCRIPTION = "Train a model by a recipe."
_TOLD = 3  # reasons of unreadable images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("recipe", help="a YAML file, or a name from 'glasszoo list recipes'")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change the recipe: optimizer.lr=3e-4")
    parser.add_argument("--data", help="data set: a name from 'glasszoo list datasets' or a folder")
    parser.add_argument("--weights", help="source of the backbone's weights: local-dir:PATH, hf-hub:ID")
    parser.add_argument("--seed", help="seed of the run")
    parser.add_argument(
        "--patch-deletion",
        metavar="PROBABILITY",
        help="delete a cell of the 4 × 4 grid from this share of the training images (0.5 as in IDSDS; default: 0)",
    )
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--auto-resume", action="store_true", help="continue the run in --out if there is one, else begin it"
    )
    parser.add_argument(
        "--save-minutes",
        type=float,
        default=15.0,
        metavar="N",
        help="save the state every N minutes in the midst of an epoch (default: 15)",
    )
    add_wandb(parser)
    parser.add_argument(
        "--wandb-images-every",
        type=int,
        default=5,
        metavar="K",
        help="show W&B the same 16 images with their evidence every K epochs (default: 5; 0: never)",
    )
    parser.add_argument(
        "--wandb-checkpoints-every",
        type=int,
        default=0,
        metavar="K",
        help="give W&B the checkpoint of every K-th epoch as well, not the best alone",
    )
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    with StopRequest("stopped before training began or after it ended, as SIGTERM asked; nothing was to be saved"):
        _train(options)


def _train(options: argparse.Namespace) -> None:
    from ..common.processes import is_first, started_processes
    from ..training import Trainer, load_recipe
    from ..training.building import chosen_device
    from ..training.state import STATE

    given = {
        "data.name": options.data,
        "model.weights": options.weights,
        "seed": options.seed,
        "augmentation.patch_deletion": options.patch_deletion,
    }
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None]
    recipe = load_recipe(options.recipe, [*options.overrides, *overrides])
    folder = options.out or Path("runs") / Path(options.recipe).stem
    # What torchrun starts anew after a process died goes on, as the processes before it would have.
    is_again = options.auto_resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    with started_processes(chosen_device(options.device)) as device:
        trainer = Trainer(
            recipe,
            folder,
            resume=options.resume or (is_again and (folder / STATE).exists()),
            device=str(device),
            wandb=options.wandb,
            wandb_images_every=options.wandb_images_every,
            wandb_checkpoints_every=options.wandb_checkpoints_every,
            command=options.command,
            save_minutes=options.save_minutes,
        )
        try:
            trained = trainer.fit()
        except Stopped as stop:
            if not trainer.report.is_closed:
                leave(str(stop))  # W&B's client would wait for its uploads
            raise
        if not is_first():
            return
    score = f"{'mAP' if recipe.multi_label else 'top-1'} {trained.score:.2%}"
    print(f"best validation {score}; checkpoint local-dir:{trained.best}; all in {trained.folder}")
    if trained.unreadable:
        print(_left_out(trained.unreadable))


def _left_out(reasons: list[str]) -> str:
    """How many images were unreadable, and why the first of them; in one line."""
    more = f"; and {len(reasons) - _TOLD} more" if len(reasons) > _TOLD else ""
    return f"left out as unreadable: {len(reasons)} images ({'; '.join(reasons[:_TOLD])}{more})"
