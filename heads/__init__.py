"""What turns a feature map into logits and evidence. Knows torch and einops; knows no timm, no data, no training."""

from .attention_branch import AttentionBranch
from .base import Contract, Explain, Explained, Features, Head, Phase, State
from .cam import CAM
from .cbam import CBAM
from .class_attention import ClassAttention
from .concepts import Concepts
from .deformable_protopnet import DeformableProtoPNet
from .dynamic_cam import DynamicCAM
from .gated_attention import GatedAttention
from .gem import GeM
from .gmp import GMP
from .local_cam import LocalCAM
from .lse import LSE
from .mgproto import MGProto
from .multiscale_cam import MultiscaleCAM
from .noisy_or import NoisyOr
from .parts import Parts
from .pay_attention import PayAttention
from .pipnet import PIPNet
from .protopnet import ProtoPNet
from .protopool import ProtoPool
from .prototree import ProtoTree
from .registry import create_head, head_class, list_heads, register_head, wanted_stages
from .scouter import SCOUTER
from .sparse_cam import SparseCAM
from .sparse_features import SparseFeatures
from .st_protopnet import STProtoPNet
from .steps import Step
from .tesnet import TesNet
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
    "DeformableProtoPNet",
    "DynamicCAM",
    "Explain",
    "Explained",
    "Features",
    "GatedAttention",
    "GeM",
    "Head",
    "LocalCAM",
    "MGProto",
    "MultiscaleCAM",
    "NoisyOr",
    "PIPNet",
    "Parts",
    "PayAttention",
    "Phase",
    "ProtoPNet",
    "ProtoPool",
    "ProtoTree",
    "STProtoPNet",
    "SparseCAM",
    "SparseFeatures",
    "State",
    "Step",
    "TesNet",
    "TopK",
    "create_head",
    "head_class",
    "list_heads",
    "register_head",
    "wanted_stages",
]
