"""Checks of head options, so that a wrong one is a sentence when the head is built and not a NaN while it trains."""

from collections.abc import Sequence

from ..common.errors import InputError, unknown_name


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuse an option outside `low` to `high`, both included.

    Raises:
        InputError: It lies outside.
    """
    if not low <= value <= high:
        wanted = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise InputError(f"{name}={value!r}: must be {wanted}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse an option that is none of `choices`.

    Raises:
        InputError: It is none of them; the nearest are listed.
    """
    if value not in choices:
        raise unknown_name(f"value of {name}", value, choices)
