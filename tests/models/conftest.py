"""A timm model that somebody fine-tuned, and what `wrap` makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from stand_ins import made
from torch import Tensor, nn

import glasszoo
from glasszoo.models import ImageClassifier, InterpretableClassifier, save_pretrained


@pytest.fixture(scope="session")
def tuned() -> Callable[..., Any]:
    """Makes a timm model with seven classes as training would leave it: no statistic or gain at its start."""

    def make(architecture: str = "test_resnet", **options: Any) -> Any:
        torch.manual_seed(0)
        model = timm.create_model(architecture, **({"num_classes": 7} | options))
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        classifiers = model.get_classifier()
        for classifier in classifiers if isinstance(classifiers, tuple) else [classifiers]:
            for layer in classifier.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    nn.init.normal_(layer.weight, std=0.5)
                    nn.init.normal_(layer.bias)
        return model.eval()

    return make


@pytest.fixture
def theirs(tuned: Callable[..., Any]) -> Any:
    return tuned()


@pytest.fixture
def ours(theirs: Any) -> InterpretableClassifier:
    model = glasszoo.wrap(theirs)
    assert isinstance(model, InterpretableClassifier)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    """A small model to be sent about."""
    return made()


@pytest.fixture
def saved(model: ImageClassifier, tmp_path: Path) -> Path:
    save_pretrained(model, tmp_path / "saved")
    return tmp_path / "saved"
