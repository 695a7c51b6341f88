"""The demo: on critters, a black box and the same network with a CAM head are trained, judged and shown."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ..data import create_dataset
from ..data.subsets import Cached, Subset
from ..evaluation import Conventions, Evaluation, evaluate
from ..evaluation.explaining import explain_images
from ..evaluation.report import write_report
from ..evaluation.results import accuracy_line, as_table, score_rows, write_results
from ..models import BLACK_BOX, load_pretrained
from .recipe import load_recipe
from .state import STATE
from .trainer import Trainer
