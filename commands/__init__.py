"""The commands of the command line, a file each: DESCRIPTION, add_arguments, run.

Nothing heavy is imported before a command runs: `glasszoo --help` must not wait for torch.
"""

from . import (
    attack,
    compare,
    counterfactual,
    demo,
    do,
    evaluate,
    explain,
    export,
    funnybirds,
    gallery,
    listing,
    prune,
    shard,
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
    "do": do,
    "counterfactual": counterfactual,
    "visualise": visualise,
    "attack": attack,
    "funnybirds": funnybirds,
    "explain": explain,
    "export": export,
    "gallery": gallery,
    "prune": prune,
    "shard": shard,
    "demo": demo,
}

__all__ = ["COMMANDS"]
