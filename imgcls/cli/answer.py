"""The one JSON document on stdout of a command that was called with --json: its answer, or else why there is none.

A command whose answer is printed even where it fails afterwards prints it with `print_answer`. `imgcls.cli.main` prints
`print_failure` for every other one that fails.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any


@dataclass
class _Command:
    has_answered: bool = False


_command = _Command()


def forget_answers() -> None:
    """Begins a command: nothing is answered yet."""
    _command.has_answered = False


def print_answer(fields: Any, **options: Any) -> None:
    """Prints a command's answer; one that fails later has answered."""
    _command.has_answered = True
    print(json.dumps(fields, **options), flush=True)


def print_failure(message: str, *, kind: str) -> None:
    """Prints why there is no answer, where JSON was asked for and nothing was answered; `message` as it is."""
    arguments = sys.argv[1:]
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in flags and not _command.has_answered:
        print(json.dumps({"error": message, "kind": kind}, indent=2))
