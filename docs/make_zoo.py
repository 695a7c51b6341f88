"""Makes the checkpoints in zoo/, in half precision: of timm's weights as they are, or of a run's best model.

python docs/make_zoo.py imagenet WEIGHTS BUTTERFLIES [PHOTO ...]
    zoo/cam_mobilenetv2_100.coral_in1k from the folder WEIGHTS, judged on BUTTERFLIES (leeds_butterfly): the test
    images of the three species that ImageNet has as classes. PHOTOs, which may be redistributed, make the picture.
python docs/make_zoo.py run RUN/best NAME
    zoo/NAME; then: glasszoo evaluate --model local-dir:zoo/NAME --data DATA --into-card
"""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import glasszoo
from glasszoo.common.environment import code_version, device_name
from glasszoo.data import create_dataset
from glasszoo.data.samples import ImageDataset, Unreadable
from glasszoo.evaluation import evaluate
from glasszoo.evaluation.explaining import explain_images
from glasszoo.evaluation.protocols import card_metrics
from glasszoo.models import DEFAULT, CardFacts, DataFacts, ImageClassifier, read_facts, save_pretrained, write_card
from glasszoo.models.layout import EXPLANATION

ZOO = Path(__file__).parents[1] / "zoo"
# Folder of leeds_butterfly → class of ImageNet.
SPECIES = {"danaus_plexippus": "monarch", "vanessa_atalanta": "admiral", "pieris_rapae": "cabbage butterfly"}


class OfImageNet:
    """Images of a few species, under the numbers that their classes have in ImageNet."""

    def __init__(self, butterflies: ImageDataset, numbers: dict[int, int], classes: tuple[str, ...]) -> None:
        self.butterflies, self.classes = butterflies, classes
        self.chosen = [index for index, label in enumerate(butterflies.labels.tolist()) if label in numbers]
        self.labels = torch.tensor([numbers[int(butterflies.labels[index])] for index in self.chosen])
        self.groups = butterflies.groups[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Any:
        sample = self.butterflies[self.chosen[index]]
        if not isinstance(sample, Unreadable):
            sample["label"] = int(self.labels[index])
        return sample


def imagenet(weights: str, butterflies: str, *photos: str) -> None:
    """The default checkpoint: timm's own classifier, untrained, explaining itself."""
    model = glasszoo.create_model(f"local-dir:{weights}", head="cam", pretrained=True).eval()
    source = "https://coral.ai/models/image-classification/"
    own = model.config.backbone_weights
    assert own is not None
    origin = replace(own, name="mobilenetv2_100.coral_in1k", license="Apache-2.0", source=source)
    model.config = replace(model.config, backbone_weights=origin)
    folder = saved(
        model,
        DEFAULT,
        CardFacts(
            data=DataFacts(
                "ImageNet-1k",
                "1.28 million photographs of 1,000 classes",
                "research only (ImageNet's terms)",
                {"train": 1281167},
            ),
            weights_license="Apache-2.0",
            commands=(shlex.join(["python", *sys.argv]),),
            seed=0,
            code=code_version(),
            hardware=device_name(torch.device("cpu")),
            intended_use="Trying glasszoo on any photograph, and a start for training; not for decisions.",
            limits=(
                "The weights came from an 8-bit network for edge devices: less accurate than later MobileNetV2s.",
                "Top-1 is of three butterflies among 1,000 classes; accuracy on ImageNet itself was not measured here.",
            ),
        ),
    )
    model = glasszoo.load_pretrained(f"local-dir:{folder}")
    found = create_dataset(butterflies, "test")
    numbers = {}
    for species, name in SPECIES.items():
        label = next(number for number, own in enumerate(found.classes) if species in own.casefold())
        numbers[label] = next(number for number, own in enumerate(model.class_names) if own.split(",")[0] == name)
    evaluation = evaluate(model, OfImageNet(found, numbers, model.class_names), methods=["built-in"])
    facts = read_facts(folder).with_metrics(card_metrics(evaluation, "leeds_butterfly, 3 species", "test"))
    if photos:
        explained = explain_images(model, [Path(photo) for photo in photos[:1]], folder, top=3)
        explained[0].picture.replace(folder / EXPLANATION)
        facts = replace(facts, picture=EXPLANATION)
    print(write_card(folder, model, facts).lacking())


def run(best: str, name: str) -> None:
    """A trained model; what its run wrote into the card stays, but for the validation score of full precision."""
    model = glasszoo.load_pretrained(f"local-dir:{best}")
    facts = read_facts(best)
    commands = (*facts.commands, shlex.join(["python", *sys.argv]))
    # What a run learned from images of our own carries our licence, unless the run said otherwise.
    own = "Apache-2.0" if facts.data and facts.data.name == "critters" else None
    saved(model, name, replace(facts, commands=commands, weights_license=facts.weights_license or own))


def saved(model: ImageClassifier, name: str, facts: CardFacts) -> Path:
    """Save `model` in half precision; refuse if that changes a prediction of noise beyond rounding."""
    folder = ZOO / name
    images = torch.randn(8, *model.config.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(images).logits
        save_pretrained(model.half(), folder, facts)
        after = glasszoo.load_pretrained(f"local-dir:{folder}")(images).logits
    gap = float((after - before).abs().max() / before.abs().max())
    print(f"{name}: logits differ by {gap:.1e} of the largest in half precision")
    if gap > 0.02:
        raise SystemExit("half precision is too coarse for this model")
    return folder


if __name__ == "__main__":
    {"imagenet": imagenet, "run": run}[sys.argv[1]](*sys.argv[2:])
