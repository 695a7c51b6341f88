"""The one kind of error a user can cause, and the sentence for a name that does not exist."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that says what, and what to do. The command line exits with 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for `name`, which is none of the `known` names of a `kind` ("head", "recipe key"): lists the nearest.

    Nearness is difflib's ratio, without regard to case; where nothing is near, the first names are listed.
    """
    names = sorted(known)
    by_folded = {candidate.casefold(): candidate for candidate in names}
    near = [by_folded[match] for match in get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)]
    if near:
        hint = f"did you mean {' or '.join(repr(match) for match in near)}?"
    elif names:
        hint = f"known: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
    else:
        hint = "none is known"
    return InputError(f"unknown {kind} {name!r}: {hint}")
