"""What turns a feature map into logits and evidence. Knows torch and einops; knows no timm, no data, no training."""

from .attention_branch import AttentionBranch
from .base import Contract, Explain, Explained, Features, Head, Phase, State
from .cam import CAM
from .cbam import CBAM
from .class_attention import ClassAttention
from .concepts import Concepts
from .gated_attention import GatedAttention
from .gem import GeM
from .gmp import GMP
from .local_cam import LocalCAM
from .lse import LSE
from .multiscale_cam import MultiscaleCAM
from .noisy_or import NoisyOr
from .parts import Parts
from .pay_attention import PayAttention
from .protopnet import ProtoPNet
from .registry import create_head, head_class, list_heads, register_head, wanted_stages
from .scouter import SCOUTER
from .sparse_cam import SparseCAM
from .sparse_features import SparseFeatures
from .topk import TopK

__all__ = [
    "CAM",
    "CBAM",
    "GMP",
    "LSE",
    "SCOUTER",
    "AttentionBranch",
    "ClassAttention",
    "Concepts",
    "Contract",
    "Explain",
    "Explained",
    "Features",
    "GatedAttention",
    "GeM",
    "Head",
    "LocalCAM",
    "MultiscaleCAM",
    "NoisyOr",
    "Parts",
    "PayAttention",
    "Phase",
    "ProtoPNet",
    "SparseCAM",
    "SparseFeatures",
    "State",
    "TopK",
    "create_head",
    "head_class",
    "list_heads",
    "register_head",
    "wanted_stages",
]
