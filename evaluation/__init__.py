"""Accuracy and explanation metrics, post-hoc comparators, tables, pictures and the report."""

from .benchmark import Evaluation, evaluate
from .card import complete_card
from .completeness import completeness_gap
from .conventions import Conventions
from .judged import Metric
from .localisation import chance_level, energy_pointing_game, pointing_game
from .maps import MapMethod
from .methods import METHODS, lacking_methods, map_method, quick_methods
from .metrics import METRICS, QUICK_METRICS
from .perturbation import Curves, deletion, insertion, rise_blur
from .prototype_scores import PrototypeScores, judge_prototypes
from .publishing import publish
from .scoring import MethodScores
from .statistics import Interval, bootstrap_interval

__all__ = [
    "METHODS",
    "METRICS",
    "QUICK_METRICS",
    "Conventions",
    "Curves",
    "Evaluation",
    "Interval",
    "MapMethod",
    "MethodScores",
    "Metric",
    "PrototypeScores",
    "bootstrap_interval",
    "chance_level",
    "complete_card",
    "completeness_gap",
    "deletion",
    "energy_pointing_game",
    "evaluate",
    "insertion",
    "judge_prototypes",
    "lacking_methods",
    "map_method",
    "pointing_game",
    "publish",
    "quick_methods",
    "rise_blur",
]
