"""The command line: glasszoo COMMAND; each command is a file of `commands`."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Sequence

from .commands import COMMANDS
from .common.errors import InputError
from .common.stopping import Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what was asked, 2 if the input was wrong, 1 if something else went wrong."""
    options = _parsed(arguments)
    options.command = shlex.join(["glasszoo", *(sys.argv[1:] if arguments is None else arguments)])
    if not options.debug:
        warnings.filterwarnings("ignore", module="torch")
    try:
        options.run(options)
    except InputError as error:
        if options.debug:
            raise
        print(f"glasszoo: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"glasszoo: {stop}", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("glasszoo: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        print(f"glasszoo: {type(error).__name__}: {reason} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line; a recipe's KEY=VALUE may stand before, between and after the options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one go, the first that it meets, and has no cure for it in subcommands.
    if rest and ("overrides" not in options or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="glasszoo", description="Image classifiers that explain themselves.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.DESCRIPTION, description=command.DESCRIPTION)
        sub.add_argument("--debug", action="store_true", help="show a traceback on errors")
        sub.set_defaults(run=command.run)
        command.add_arguments(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
