"""CaBRNet's side of `benchmarks/prototypes.py cabrnet`, run by the python of an environment that has cabrnet.

The first line of stdin holds the settings as JSON, and is answered by the versions. Each further line asks for a round:
a new ProtoPNet, trained for one epoch and projected. Its answer, one line of JSON on stdout: `images`, and seconds for
`training` and `projection`, the share of the epoch that was spent waiting for data, and the parameters of the backbone.
The model, the optimizers and the loaders are built by CaBRNet's own functions from configurations like those of its
repository (configs/protopnet/cub200), and what is timed is its own `train_epoch` and `project`.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import torch
from cabrnet.archs.generic.model import CaBRNet
from cabrnet.core.utils.data import DatasetManager
from cabrnet.core.utils.optimizers import OptimizerManager
from loguru import logger

NEVER = 10**6  # an epoch that never comes


def model_config(settings: dict[str, Any]) -> dict[str, Any]:
    """ProtoPNet with random weights: two 1×1 convolutions on the backbone, squared distances, the log-ratio."""
    convolution = {"type": "Conv2d", "params": {"out_channels": settings["dim"], "kernel_size": 1}}
    # Each its own: CaBRNet writes the input channels into it.
    first, second = (json.loads(json.dumps(convolution)) for _ in range(2))
    add_on = {"conv1": first, "act1": {"type": "ReLU"}, "conv2": second, "act2": {"type": "Sigmoid"}}
    return {
        "top_arch": {"module": "cabrnet.archs.protopnet.model", "name": "ProtoPNet"},
        "extractor": {
            "backbone": {"arch": settings["architecture"], "layer": settings["layer"], "weights": "None"},
            "add_on": {"init_mode": "PROTOPNET", **add_on},
        },
        "similarity": {"name": "ProtoPNetSimilarity"},
        "classifier": {
            "module": "cabrnet.archs.protopnet.decision",
            "name": "ProtoPNetClassifier",
            "params": {
                "num_classes": settings["classes"],
                "num_features": settings["dim"],
                "num_proto_per_class": settings["per_class"],
                "proto_init_mode": "UNIFORM",
            },
        },
    }


def training_config() -> dict[str, Any]:
    """The joint phase alone, and no projection inside of it; rates are those of configs/protopnet/cub200."""
    groups = {
        "backbone": {"lr": 1e-4, "weight_decay": 1e-3},
        "addons": {"lr": 3e-3, "weight_decay": 1e-3},
        "prototypes": {"lr": 3e-3},
    }
    return {
        "param_groups": {
            "backbone": "extractor.convnet",
            "addons": "extractor.add_on",
            "prototypes": "classifier.prototypes",
            "last_layer": "classifier.last_layer",
        },
        "optimizers": {
            "joint": {"type": "Adam", "groups": groups},
            "last_layer_optimizer": {"type": "Adam", "groups": {"last_layer": {"lr": 1e-4}}},
        },
        "num_epochs": 1,
        "periods": {"main": {"epoch_range": [0, 0], "freeze": "last_layer", "optimizers": "joint"}},
        "auxiliary_info": {"projection_config": {"start_epoch": NEVER}},
    }


def data_config(settings: dict[str, Any]) -> dict[str, Any]:
    """The folder's images, resized and normalised; shuffled in training."""
    size = settings["size"]
    transform = {
        "resize": {"type": "Resize", "params": {"size": [size, size], "interpolation": settings["interpolation"]}},
        "to_tensor": {"type": "ToTensor"},
        "normalize": {"type": "Normalize", "params": {"mean": settings["mean"], "std": settings["std"]}},
    }
    common = {
        "module": "torchvision.datasets",
        "name": "ImageFolder",
        "params": {"root": settings["folder"], "transform": transform},
        "batch_size": settings["batch"],
    }
    kinds = {"train_set": True, "projection_set": False, "test_set": False}
    return {name: {**common, "shuffle": shuffle} for name, shuffle in kinds.items()}


def measured(settings: dict[str, Any], number: int) -> dict[str, float]:
    """One round."""
    torch.manual_seed(number)
    model = CaBRNet.build_from_config(model_config(settings))
    model.register_training_params(training_config())
    optimizers = OptimizerManager.build_from_config(training_config(), model)
    loaders = DatasetManager.get_dataloaders(data_config(settings))
    optimizers.freeze(epoch=0)
    begin = time.perf_counter()
    about = model.train_epoch(loaders, optimizers, device="cpu", epoch_idx=0)
    trained = time.perf_counter()
    model.project(loaders["projection_set"], device="cpu")
    projected = time.perf_counter()
    return {
        "images": len(loaders["train_set"].dataset),
        "training": trained - begin,
        "projection": projected - trained,
        "waiting": about["time/data"] / about["time/batch"],
        "parameters": sum(parameter.numel() for parameter in model.extractor.convnet.parameters()),
    }


if __name__ == "__main__":
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing but answers shall stand on stdout
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    print(json.dumps({"cabrnet": version("cabrnet"), "torch": torch.__version__}), file=answers, flush=True)
    for number, _ in enumerate(sys.stdin):
        print(json.dumps(measured(settings, number)), file=answers, flush=True)
