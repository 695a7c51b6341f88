"""The rows that a run writes down, one an epoch: as a line, and as a table."""

import csv
import io
from typing import Any


def as_line(row: dict[str, Any]) -> str:
    """The numbers of an epoch."""
    numbers = {name: value for name, value in row.items() if isinstance(value, float)}
    text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return f"epoch {row['epoch']} ({row['phase']})  {text}"


def as_csv(history: list[dict[str, Any]]) -> str:
    """The rows under the union of their columns: phases can have different losses."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
