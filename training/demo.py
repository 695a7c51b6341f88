"""The demo: on critters, a black box and the same network with a CAM head are trained, judged and shown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torchvision.transforms.v2.functional import to_pil_image

from ..common.files import replacing
from ..data import create_dataset
from ..data.samples import ImageDataset, Unreadable
from ..data.subsets import Cached
from ..evaluation import Evaluation, evaluate, lacking_methods
from ..evaluation.explaining import explain_images
from ..evaluation.report import write_report
from ..evaluation.results import accuracy_line, as_table, score_rows, write_results
from ..models import BLACK_BOX, load_pretrained
from .recipe import load_recipe
from .state import STATE
from .trainer import BEST, Trainer

_TESTED = 1000  # test images
_EXPLAINED = 128  # images whose maps are scored
_PICTURES = 4  # images explained one by one


def run_demo(folder: Path, command: str) -> Path:
    """Train, evaluate and explain into `folder`; returns the report. What is already there is taken up, not redone."""
    recipe = load_recipe("critters")
    options = recipe.data.options | {"count": _TESTED}
    test_set = Cached(create_dataset(recipe.data.name, "test", **options), "drawing test images")
    evaluations: dict[str, Evaluation] = {}
    for head in (BLACK_BOX, "cam"):
        run = folder / head
        print(f"training {recipe.model.backbone} with head {head} in {run}")
        own = replace(recipe, model=replace(recipe.model, head=head))
        Trainer(own, run, resume=(run / STATE).exists(), command=command).fit()
        model = load_pretrained(f"local-dir:{run / BEST}")
        evaluation = evaluate(model, test_set, max_explained=_EXPLAINED, batch_size=64)
        write_results(evaluation, run, command=command, data="critters", split="test", seed=recipe.seed)
        print(f"{head}: {accuracy_line(evaluation)}\n{as_table(score_rows(evaluation))}\n")
        evaluations[f"{head} · {recipe.model.backbone}"] = evaluation
    for sentence in lacking_methods():
        print(f"left out: {sentence}")
    _explain_some(evaluations, test_set, folder)
    report = folder / "report.html"
    about: dict[str, Any] = {"command": command, "recipe": "critters", "seed": recipe.seed}
    write_report(report, "glasszoo demo: critters", evaluations, test_set, **about)
    return report


def _explain_some(evaluations: dict[str, Evaluation], test_set: ImageDataset, folder: Path) -> None:
    """Pictures as `glasszoo explain` writes them, of stored images, by the model that explains itself."""
    *_, explaining = evaluations.values()
    paths = []
    for number in range(_PICTURES):
        sample = test_set[number]
        assert not isinstance(sample, Unreadable)
        path = folder / "images" / f"critter_{number}.png"
        with replacing(path) as temporary:
            to_pil_image(sample["image"]).save(temporary, format="PNG")
        paths.append(path)
    explain_images(explaining.model, paths, folder / "explanations", top=2)
    print(f"pictures of single explanations are in {folder / 'explanations'}")
