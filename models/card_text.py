"""A model card as Markdown, README.md of a checkpoint: made from its facts, so that no section can be forgotten."""

import re
from collections.abc import Iterable

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..heads import Contract
from .card import CardFacts, Metric, ModelFacts

_UNKNOWN = "unknown"
_NOT_MEASURED = "Not measured."

# What a map means, by its contract.
MEANING = {
    Contract.LINEAR: "The evidence of a cell is a fixed linear function of the network's feature there, the same for "
    "every image; the map and its offset add up to the logit.",
    Contract.DYNAMIC: "The map and its offset add up to the logit once the image's own statistics (attention weights, "
    "norms, gates) are taken as they are. These depend on the whole image: in another image the same feature can count "
    "differently.",
    Contract.SELECT: "The logit is made of chosen cells alone; the map shows their part in it and is zero everywhere "
    "else, so cells that were nearly chosen are not seen.",
    Contract.PROBABILITY: "The map and its offset add up to the probability, not to the logit.",
    Contract.NONE: "There is no map. One that another method computes afterwards is not what the logit is made of.",
}

_DOES_NOT_SAY = (
    "It shows what this model's logit is made of, not what causes the label in the world: a background that goes along "
    "with a class can be evidence for it.",
    "It does not say what the model would answer if a region were changed: the features of other cells would change "
    "as well.",
    "A place without evidence is not one that the model ignores: its pixels reach the features of other cells.",
    "The map of one class says nothing about another; what speaks for one and against the other is the difference of "
    "their maps.",
    "An attention, similarity or part map (`parts`) is not evidence: it shows where the head looked, and its sign is "
    "missing.",
)

# Licences that the hub knows by these ids; it refuses a card with any other.
_LICENSES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "unlicense"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-3.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-3.0"),
}


def card_text(facts: CardFacts) -> str:
    """README.md: the hub's metadata as YAML, then the sections of `card_sections`."""
    assert facts.model is not None
    sections = card_sections(facts)
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    front = _metadata(facts, facts.model).to_yaml()
    return str(ModelCard(f"---\n{front}\n---\n\n# {facts.model.name}\n\n{body}\n"))


def card_sections(facts: CardFacts) -> dict[str, str]:
    """Title → Markdown, every section of every card; what is not known is said to be so."""
    model = facts.model
    assert model is not None
    return {
        "Model": _model(model),
        "Picture": _picture(facts, model),
        "Data": _data(facts),
        "Licences": _licences(facts, model),
        "How it was made": _making(facts),
        "Metrics": _metrics(facts.metrics),
        "Intended use": _use(facts, model),
        "Limits": _bullets([*_field(model), MEANING[model.contract], *facts.limits]),
        "What the map does not say": MEANING[Contract.NONE]
        if model.contract is Contract.NONE
        else _bullets(_DOES_NOT_SAY),
        **facts.notes,
    }


def _metadata(facts: CardFacts, model: ModelFacts) -> ModelCardData:
    source = model.backbone_source or ""
    license, license_name = _hub_license(facts.weights_license)
    return ModelCardData(
        library_name="glasszoo",
        pipeline_tag="image-classification",
        tags=["interpretability", "timm", model.head],
        license=license,
        license_name=license_name,
        datasets=[_slug(facts.data.name)] if facts.data else None,
        base_model=source if re.fullmatch(r"[\w.-]+/[\w.-]+", source) else None,  # a repository of the hub
        model_name=model.name,
        eval_results=[_result(metric) for metric in facts.metrics if metric.map in (None, "built-in")] or None,
    )


def _hub_license(name: str | None) -> tuple[str | None, str | None]:
    """The hub's id, and the name that it wants beside "other"."""
    if name is None:
        return None, None
    known = _slug(re.sub(r"(?i)\blicen[cs]e\b", "", name))
    return (known, None) if known in _LICENSES else ("other", name)


def _result(metric: Metric) -> EvalResult:
    kind = {"top1": "accuracy", "map": "mean_average_precision"}.get(metric.name, metric.name)
    return EvalResult(
        task_type="image-classification",
        dataset_type=_slug(metric.data),
        dataset_name=metric.data,
        dataset_split=metric.split,
        metric_type=kind,
        metric_name=f"{metric.name} of {metric.map}" if metric.map else metric.name,
        metric_value=metric.value,
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _model(model: ModelFacts) -> str:
    names = f": {', '.join(model.classes)}" if model.classes else ", which have no names"
    if model.classes and len(model.classes) < model.num_classes:
        names += f" and {model.num_classes - len(model.classes)} more (config.json)"
    return _bullets(
        [
            f"Head: `{model.head}`, contract `{model.contract}`; backbone: timm's `{model.architecture}`",
            f"{model.parameters:,} parameters; images of {_size(model.input_size)} pixels",
            f"{model.num_classes} classes{names}",
        ]
    )


def _picture(facts: CardFacts, model: ModelFacts) -> str:
    if facts.picture:
        return (
            f"![Images and what speaks for their predicted classes]({facts.picture})\n\n"
            "Red speaks for the class that is predicted, blue against it; each map has its own scale. A yellow "
            "outline, where there is one, is the known cause of the label."
        )
    if model.contract is Contract.NONE:
        return "None: a black box gives no map."
    return "None: the images are private." if facts.withholds_images else "None yet."


def _data(facts: CardFacts) -> str:
    data = facts.data
    if data is None:
        return f"It is {_UNKNOWN} what the model was trained on."
    images = ", ".join(f"{count:,} {split}" for split, count in data.images.items())
    return _bullets(
        [
            f"{data.name}: {data.description or 'no description given'}",
            f"Licence: {data.license or f'{_UNKNOWN}; the recipe can state it (data.license)'}",
            f"Images: {images or _UNKNOWN}",
        ]
    )


def _licences(facts: CardFacts, model: ModelFacts) -> str:
    if model.backbone_weights is None:
        backbone = "none, trained from scratch"
    else:
        source = f", from {model.backbone_source}" if model.backbone_source else ""
        license = model.backbone_license or f"{_UNKNOWN}; config.json can state it (backbone_weights.license)"
        backbone = f"{model.backbone_weights}{source}; licence: {license}"
    weights = facts.weights_license or f"{_UNKNOWN}; the recipe can state it (model.license)"
    return _bullets(
        ["Code: glasszoo, Apache-2.0", f"These weights: {weights}", f"The backbone's first weights: {backbone}"]
    )


def _making(facts: CardFacts) -> str:
    commands = "\n".join(facts.commands)
    return "\n".join(
        [
            f"```sh\n{commands}\n```\n" if commands else f"The command is {_UNKNOWN}.\n",
            f"- Seed: {_UNKNOWN if facts.seed is None else facts.seed}",
            f"- Code: {facts.code or _UNKNOWN}",
            f"- Hardware: {facts.hardware or _UNKNOWN}",
        ]
    )


def _metrics(metrics: Iterable[Metric]) -> str:
    rows, protocols = [], dict[str, list[str]]()
    for metric in metrics:
        interval = "" if metric.low is None or metric.high is None else f" [{metric.low:.4g}, {metric.high:.4g}]"
        cells = (metric.name, metric.map or "–", f"{metric.value:.4g}{interval}", metric.data, metric.split)
        rows.append(f"| {' | '.join(cells)} | {metric.images} |")
        names, name = protocols.setdefault(metric.protocol or "not told", []), f"{metric.name} ({metric.split})"
        names += [] if name in names else [name]
    if not rows:
        return _NOT_MEASURED
    head = "| metric | map | value | data | split | images |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows, "", *(f"- {', '.join(names)}: {text}" for text, names in protocols.items())])


def _use(facts: CardFacts, model: ModelFacts) -> str:
    if facts.intended_use:
        return facts.intended_use
    of_what = f"images like those of {facts.data.name}" if facts.data else "images like those it was trained on"
    shows = "" if model.contract is Contract.NONE else ", and to see which places its decisions are made of"
    return (
        f"To tell {model.num_classes} classes apart on {of_what}{shows}. Elsewhere its accuracy is not known: measure "
        "it on images of your own before anything depends on it. An image of none of the classes gets one of them all "
        "the same."
    )


def _field(model: ModelFacts) -> list[str]:
    """What a cell of the map sees."""
    if model.receptive_field is None or model.stride is None:
        return ["What a cell of the map sees of the image is not known."]
    share = 1.0
    for field, side in zip(model.receptive_field, model.input_size, strict=True):
        share *= min(1.0, field / side)
    cell = (
        f"The network gives a cell every {model.stride:g} pixels, and each sees a field of "
        f"{_size(model.receptive_field)} pixels, up to {share:.0%} of the image: what counts may lie anywhere in it, "
        "not only under the cell."
    )
    if model.sees_whole_image:
        return [
            cell,
            "Means over the whole image (as in squeeze-and-excitation or group norm) let every cell see some of every "
            "pixel all the same.",
        ]
    return [cell, "No pixel outside its field changes the feature of a cell."]


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} × {size[0]}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
