"""The command line: glasszoo list | train | evaluate | explain | gallery | prune | demo."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common.errors import InputError, unknown_name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what was asked, 2 if the input was wrong, 1 if something else went wrong."""
    options = _parsed(arguments)
    options.command = shlex.join(["glasszoo", *(sys.argv[1:] if arguments is None else arguments)])
    if not options.debug:
        warnings.filterwarnings("ignore", module="torch")
    try:
        options.run(options)
    except InputError as error:
        if options.debug:
            raise
        print(f"glasszoo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("glasszoo: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        print(f"glasszoo: {type(error).__name__}: {reason} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line; a recipe's KEY=VALUE may stand before, between and after the options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one go, the first that it meets, and has no cure for it in subcommands.
    if rest and ("overrides" not in options or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="glasszoo", description="Image classifiers that explain themselves.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Any, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=description, description=description)
        sub.add_argument("--debug", action="store_true", help="show a traceback on errors")
        sub.set_defaults(run=run)
        return sub

    sub = command("list", _list, "Print the names that the other commands take.")
    sub.add_argument("what", choices=_LISTS, metavar="|".join(_LISTS))
    sub.add_argument("pattern", nargs="?", default="*", help="with wildcards, as 'resnet*'")

    sub = command("train", _train, "Train a model by a recipe.")
    sub.add_argument("recipe", help="a YAML file, or a name from 'glasszoo list recipes'")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change the recipe: optimizer.lr=3e-4")
    sub.add_argument("--data", help="data set: a name from 'glasszoo list datasets' or a folder")
    sub.add_argument("--weights", help="source of the backbone's weights: local-dir:PATH, hf-hub:ID")
    sub.add_argument("--seed", help="seed of the run")
    sub.add_argument("--out", type=Path, help="the run's folder (default: runs/RECIPE)")
    sub.add_argument("--resume", action="store_true", help="continue the run in --out")
    sub.add_argument("--wandb", default="disabled", metavar="disabled|offline|online", help="Weights & Biases")
    _add_device(sub)

    sub = command("evaluate", _evaluate, "Judge a model's accuracy and explanations; write tables and a report.")
    _add_model(sub)
    sub.add_argument("--data", required=True, help="data set: a name or a folder")
    sub.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    sub.add_argument("--split", default="test")
    sub.add_argument("--methods", help="comma-separated, from 'glasszoo list methods' (default: all installed)")
    sub.add_argument("--metrics", help="comma-separated, from 'glasszoo list metrics' (default: all)")
    sub.add_argument("--max-explained", type=int, metavar="N", help="score the maps of N images only")
    sub.add_argument("--target", choices=("predicted", "label"), default="predicted", help="the class explained")
    sub.add_argument(
        "--placement",
        choices=("stretched", "receptive_field"),
        default="stretched",
        help="where a map's cells stand: tiles of the image, or the centres of their receptive fields",
    )
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--workers", type=int, default=0, help="processes that read images")
    sub.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out, and count them")
    sub.add_argument("--out", type=Path, default=Path("runs/evaluation"), help="folder of the results")
    _add_device(sub)

    sub = command("explain", _explain, "Write a picture of the evidence for each image.")
    sub.add_argument("images", nargs="+", type=Path)
    _add_model(sub)
    sub.add_argument("--top", type=int, default=3, help="how many classes to explain")
    sub.add_argument(
        "--class", dest="classes", action="append", default=[], metavar="NAME", help="explain this one; repeatable"
    )
    sub.add_argument("--out", type=Path, default=Path("explanations"), help="folder of the pictures")
    _add_device(sub)

    sub = command("gallery", _gallery, "Write a page of a model's prototypes, and of images explained by them.")
    sub.add_argument("images", nargs="*", type=Path, help="explain these by prototypes")
    sub.add_argument("--model", required=True, help="local-dir:CHECKPOINT")
    sub.add_argument("--data", required=True, help="the data set that the model was trained on")
    sub.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    sub.add_argument("--nearest", type=int, default=3, help="patches shown of each prototype and split")
    sub.add_argument("--out", type=Path, default=Path("gallery.html"), help="the page")
    _add_device(sub)

    sub = command("prune", _prune, "Remove prototypes, re-fit the last layer, and say what that does to accuracy.")
    sub.add_argument("--model", required=True, help="local-dir:CHECKPOINT")
    sub.add_argument("--data", required=True, help="the data set that the model was trained on; not its test split")
    sub.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    sub.add_argument("--remove", nargs="+", type=int, default=[], metavar="ID", help="by number, as in the gallery")
    sub.add_argument("--as-in-paper", action="store_true", help="prune as the head's paper does")
    sub.add_argument("--budget", type=int, metavar="N", help="keep the N that add most to logits; one a class at least")
    sub.add_argument("--refit-epochs", type=int, default=10, metavar="N", help="0: leave the last layer as it is")
    sub.add_argument("--lr", type=float, default=1e-3, help="of the re-fit")
    sub.add_argument("--seed", type=int, default=0, help="the training run's, or images it knows judge it")
    sub.add_argument("--validation", type=float, default=0.15, help="the training run's share of validation images")
    sub.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out, and list them")
    sub.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    _add_device(sub)

    sub = command("demo", _demo, "Train, evaluate and explain on critters; a few minutes, nothing to download.")
    sub.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a checkpoint (local-dir:, hf-hub:, wandb:, https:), or timm's weights by name"
    )
    parser.add_argument("--head", default="cam", help="how timm's weights are to explain themselves")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="torch's name, such as cpu or cuda:1 (default: the GPU if there is one)")


_LISTS = ("heads", "backbones", "recipes", "datasets", "metrics", "methods")


def _list(options: argparse.Namespace) -> None:
    from fnmatch import filter as matching

    from .data import DATASETS
    from .evaluation import MAP_METRICS, METHODS
    from .heads import list_heads
    from .models import BLACK_BOX, list_backbones
    from .training import list_recipes

    names = {
        "heads": lambda: [*list_heads(), BLACK_BOX],
        "backbones": lambda: list_backbones(options.pattern),
        "recipes": list_recipes,
        "datasets": lambda: sorted(DATASETS),
        "metrics": lambda: list(MAP_METRICS),
        "methods": lambda: list(METHODS),
    }[options.what]()
    if not (found := matching(names, options.pattern)):
        raise unknown_name(options.what.removesuffix("s"), options.pattern, names)
    print("\n".join(found))


def _train(options: argparse.Namespace) -> None:
    from .training import Trainer, load_recipe

    given = {"data.name": options.data, "model.weights": options.weights, "seed": options.seed}
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None]
    recipe = load_recipe(options.recipe, [*options.overrides, *overrides])
    folder = options.out or Path("runs") / Path(options.recipe).stem
    trained = Trainer(
        recipe,
        folder,
        resume=options.resume,
        device=options.device,
        wandb=options.wandb,
        command=options.command,
    ).fit()
    print(f"best validation top-1 {trained.top1:.2%}; checkpoint local-dir:{trained.best}; all in {trained.folder}")


def _evaluate(options: argparse.Namespace) -> None:
    from .data import create_dataset
    from .evaluation import MAP_METRICS, Conventions, evaluate, lacking_methods
    from .evaluation.report import write_report
    from .evaluation.results import accuracy_line, as_table, prototype_line, score_rows, write_results
    from .models import open_model
    from .training.building import chosen_device
    from .training.recipe import parse_options

    dataset = create_dataset(options.data, options.split, **parse_options(options.data_option))
    model = open_model(options.model, options.head).to(chosen_device(options.device))
    evaluation = evaluate(
        model,
        dataset,
        methods=options.methods.split(",") if options.methods else None,
        metrics=options.metrics.split(",") if options.metrics else MAP_METRICS,
        conventions=Conventions(target=options.target, placement=options.placement),
        batch_size=options.batch_size,
        max_explained=options.max_explained,
        num_workers=options.workers,
        on_error="skip" if options.skip_unreadable else "raise",
    )
    about = {"command": options.command, "data": options.data, "split": options.split}
    write_results(evaluation, options.out, **about)
    name = f"{model.config.head} · {model.config.architecture}"
    write_report(options.out / "report.html", f"{name} on {options.split}", {name: evaluation}, dataset, **about)
    print(accuracy_line(evaluation))
    if line := prototype_line(evaluation):
        print(line)
    print(as_table(score_rows(evaluation)))
    for reason in [*evaluation.unreadable, *([] if options.methods else lacking_methods())]:
        print(f"left out: {reason}")
    print(f"results.json, per_image.csv and report.html are in {options.out}")


def _explain(options: argparse.Namespace) -> None:
    from .evaluation.explaining import explain_images
    from .models import open_model
    from .training.building import chosen_device

    model = open_model(options.model, options.head).to(chosen_device(options.device))
    for done in explain_images(model, options.images, options.out, options.top, options.classes):
        probabilities = done.explained.logits[0].softmax(0)
        numbers = done.explained.classes[0].tolist()
        told = ", ".join(f"{model.class_names[number]} {probabilities[number]:.1%}" for number in numbers)
        print(f"{done.image}: {told} → {done.picture}")


def _gallery(options: argparse.Namespace) -> None:
    from .data import create_dataset
    from .evaluation.gallery import write_gallery
    from .models import load_pretrained
    from .training.building import chosen_device
    from .training.recipe import parse_options

    model = load_pretrained(options.model).to(chosen_device(options.device))
    own = parse_options(options.data_option)
    training, test = (create_dataset(options.data, split, **own) for split in ("train", "test"))
    write_gallery(options.out, model, training, test, options.images, options.nearest)
    print(f"the gallery is {options.out}")


def _prune(options: argparse.Namespace) -> None:
    from .common.files import check_vacant
    from .data import create_dataset
    from .evaluation.results import as_table
    from .models import load_pretrained, save_pretrained
    from .training.building import chosen_device
    from .training.interaction import Pruning, Refit, prune_and_refit
    from .training.recipe import parse_options

    pruning = Pruning(options.remove, options.as_in_paper, options.budget)
    refit_by = Refit(options.refit_epochs, options.lr)
    check_vacant(options.out)
    model = load_pretrained(options.model).to(chosen_device(options.device))
    images = create_dataset(options.data, "train", **parse_options(options.data_option))
    done = prune_and_refit(
        model,
        images,
        pruning,
        refit_by,
        seed=options.seed,
        validation=options.validation,
        on_error="skip" if options.skip_unreadable else "raise",
    )
    table = as_table(done.rows())
    save_pretrained(model, options.out, {"Pruning": f"`{options.command}`\n\n```\n{table}\n```\n\n{done.refitted}"})
    print(table)
    for line in (done.refitted, *(f"left out: {reason}" for reason in done.unreadable)):
        print(line)
    print(f"the new checkpoint is local-dir:{options.out}")


def _demo(options: argparse.Namespace) -> None:
    from .training.demo import run_demo

    report = run_demo(options.out, options.command)
    print(f"the report is {report}")


if __name__ == "__main__":
    sys.exit(main())
