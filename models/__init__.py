"""Backbone + head = one model; the factory; checkpoints."""

from .anatomy import Grid
from .backbone import Backbone, list_backbones
from .bagnet import BagNet
from .checkpoint import load_pretrained, open_model, save_pretrained
from .classifier import BlackBoxClassifier, ImageClassifier, InterpretableClassifier, Logits
from .config import BLACK_BOX, ModelConfig
from .conversion import PROTOPNET_BACKBONES, PROTOPNET_PREPROCESSING, from_protopnet
from .export import Exported, export_model
from .factory import build_model, create_model
from .hub import push_to_hub
from .preprocessing import Preprocess, Preprocessing
from .web import pin
from .wrapping import wrap

__all__ = [
    "BLACK_BOX",
    "PROTOPNET_BACKBONES",
    "PROTOPNET_PREPROCESSING",
    "Backbone",
    "BagNet",
    "BlackBoxClassifier",
    "Exported",
    "Grid",
    "ImageClassifier",
    "InterpretableClassifier",
    "Logits",
    "ModelConfig",
    "Preprocess",
    "Preprocessing",
    "build_model",
    "create_model",
    "export_model",
    "from_protopnet",
    "list_backbones",
    "load_pretrained",
    "open_model",
    "pin",
    "push_to_hub",
    "save_pretrained",
    "wrap",
]
