"""The commands of the command line, a file each: DESCRIPTION, add_arguments, run.

Nothing heavy is imported before a command runs: `glasszoo --help` must not wait for torch.
"""

from . import (
    compare,
    counterfactual,
    demo,
    do,
    evaluate,
    explain,
    export,
    gallery,
    listing,
    prune,
    train,
    truth,
    visualise,
)

COMMANDS = {
    "list": listing,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "truth": truth,
    "counterfactual": counterfactual,
    "do": do,
    "visualise": visualise,
    "explain": explain,
    "export": export,
    "gallery": gallery,
    "prune": prune,
    "demo": demo,
}

__all__ = ["COMMANDS"]
