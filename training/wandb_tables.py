"""Prototypes, and the scores of an evaluation, as tables and charts of W&B."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..common.errors import InputError
from ..data.samples import ImageDataset
from ..evaluation.gallery import Pictures, framed
from ..evaluation.pictures import as_png
from ..evaluation.sheet import Row, Sheet
from ..evaluation.sheet_files import LONG_COLUMNS, long_rows
from ..models import ImageClassifier
from ..models.classifier import prototype_head

_MOST = 512  # prototypes in a table; each has a picture
