"""Backbone + head = one model; the factory; checkpoints."""

from .anatomy import Grid
from .backbone import Backbone
from .bagnet import BagNet
from .card import CardFacts, DataFacts, Metric, ModelFacts, read_facts
from .catalogue import BackboneFacts, facts_of, list_backbones, list_families
from .checkpoint import load_pretrained, open_model, save_pretrained, write_card
from .classifier import BlackBoxClassifier, ImageClassifier, InterpretableClassifier, Logits
from .config import BLACK_BOX, ModelConfig
from .conversion import PROTOPNET_BACKBONES, PROTOPNET_PREPROCESSING, from_protopnet
from .export import Exported, export_model
from .factory import build_model, create_model
from .hub import push_to_hub
from .preprocessing import Preprocess, Preprocessing
from .released import DEFAULT, Released, list_pretrained, released
from .web import pin
from .wrapping import wrap

__all__ = [
    "BLACK_BOX",
    "DEFAULT",
    "PROTOPNET_BACKBONES",
    "PROTOPNET_PREPROCESSING",
    "Backbone",
    "BackboneFacts",
    "BagNet",
    "BlackBoxClassifier",
    "CardFacts",
    "DataFacts",
    "Exported",
    "Grid",
    "ImageClassifier",
    "InterpretableClassifier",
    "Logits",
    "Metric",
    "ModelConfig",
    "ModelFacts",
    "Preprocess",
    "Preprocessing",
    "Released",
    "build_model",
    "create_model",
    "export_model",
    "facts_of",
    "from_protopnet",
    "list_backbones",
    "list_families",
    "list_pretrained",
    "load_pretrained",
    "open_model",
    "pin",
    "push_to_hub",
    "read_facts",
    "released",
    "save_pretrained",
    "wrap",
    "write_card",
]
