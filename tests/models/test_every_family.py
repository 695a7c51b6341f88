"""The smallest member of every family of timm's CNNs: the census' row, and a head of every other kind."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from glasszoo.heads import create_head
from glasszoo.models.backbone import Backbone, create_network

_PATH = Path(__file__).parents[2] / "benchmarks" / "census.py"
_SPEC = importlib.util.spec_from_file_location("census", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
census: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(census)
# One head of each kind: pooled, selected, attention, parts, concepts, prototypes, probabilities.
HEADS = ("lse", "topk", "gated_attention", "parts", "concepts", "protopnet", "mgproto")


@pytest.mark.parametrize("name", census.smallest_of_each_family())
def test_it_explains_itself_with_timms_classifier_and_with_ours(name: str) -> None:
    torch.manual_seed(0)
    row = census.examined(name)
    assert row["works"], row["reason"]
    assert row["head"] in ("cam", "dynamic_cam"), row["reason"]
    assert float(row["logits_gap"]) <= 1e-4 and float(row["evidence_gap"]) <= 1e-4
    assert row["within"] in ("", True)


@pytest.mark.parametrize("name", census.smallest_of_each_family())
def test_heads_of_every_kind(name: str) -> None:
    torch.manual_seed(0)
    network = create_network(name, num_classes=0)
    backbone = Backbone(network.module.eval(), network.anatomy)
    with torch.inference_mode():
        features = backbone(torch.randn(2, 3, 128, 160))
        for kind in HEADS:
            head = create_head(kind, backbone.head_features, 7).eval()
            explained = head(features, "all")
            assert explained.maps.shape[:2] == (2, 7) and explained.maps.shape[2] >= 2
            whole = head.contract.explained_quantity(explained.logits)
            gap = (explained.maps.sum((-2, -1)) + explained.offset - whole).abs().max()
            assert gap <= 1e-4 * whole.abs().max().clamp(min=1), kind
