"""Images with labels and with the truth about explanations: masks, boxes, parts. Knows no model."""

from .registry import DATASETS, create_dataset

__all__ = ["DATASETS", "create_dataset"]
