"""What turns a feature map into logits and evidence. Knows torch and einops; knows no timm, no data, no training."""

from .base import Contract, Explain, Explained, Head, Phase, State
from .cam import CAM
from .registry import create_head, head_class, list_heads, register_head

__all__ = [
    "CAM",
    "Contract",
    "Explain",
    "Explained",
    "Head",
    "Phase",
    "State",
    "create_head",
    "head_class",
    "list_heads",
    "register_head",
]
