"""Is relevance conserved? `python benchmarks/lrp.py [BACKBONE …]`: benchmarks/results/lrp.csv, a row a network.

Untrained weights, norms with random statistics and weights of either sign, 96 px, the cam head, three images and
classes: the sum of the relevance of all pixels over that at the head's input, furthest from 1; or why LRP is refused.
"""

import csv
import sys
from pathlib import Path

import torch
from torch import nn

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.evaluation import map_method
from glasszoo.evaluation.posthoc import prepared
from glasszoo.evaluation.posthoc_lrp import at_features
from glasszoo.evaluation.results import as_table

RESULTS = Path(__file__).parent / "results" / "lrp.csv"
BACKBONES = (
    "resnet18", "resnet50", "seresnet18", "resnext50_32x4d", "vgg11", "vgg11_bn", "densenet121", "regnetx_002",
    "regnety_002", "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv4_conv_small", "efficientnet_b0",
    "convnext_tiny", "repvgg_a0", "hrnet_w18_small", "inception_v3", "ghostnet_100", "xception41", "dla34",
    "cspresnet50", "res2net50_14w_8s", "mnasnet_100", "nf_resnet50", "dm_nfnet_f0", "resnetv2_50",
)  # fmt: skip


def unsettled(backbone: str) -> glasszoo.models.ImageClassifier:
    """A network whose norms do something."""
    torch.manual_seed(0)
    model = glasszoo.create_model(backbone, num_classes=5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(0.5, 0.6)
                module.bias.normal_(0, 0.2)
    return model


def row(backbone: str) -> dict[str, str]:
    """Conservation, or a reason."""
    try:
        model = unsettled(backbone)
        images, classes = torch.randn(3, 3, 96, 96), torch.arange(3)
        total = map_method("lrp", model).explain(images, classes, classes).sum((1, 2))
        with prepared(model):
            owed = at_features(model, images, classes).flatten(1).sum(1)
        shares = total / owed
        return {"backbone": backbone, "conserved": f"{shares[(shares - 1).abs().argmax()]:.4f}", "refused": ""}
    except InputError as error:
        return {"backbone": backbone, "conserved": "", "refused": str(error)}


if __name__ == "__main__":
    rows = []
    for name in sys.argv[1:] or BACKBONES:
        rows.append(row(name))
        print(" ".join(rows[-1].values()), flush=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["backbone", "conserved", "refused"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(as_table([list(rows[0]), *(list(each.values()) for each in rows)]))
