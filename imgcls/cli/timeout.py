"""The option that names how long a command waits, for every command that has one."""

import math
from typing import Any

import typer

from imgcls.errors import UsageError

LONGEST_S = 1_000_000.0  # eleven days; far above, and at inf, sockets and sleeps overflow


def timeout_option(help_text: str, *, least_s: float = 1.0) -> Any:
    """Returns the option `--timeout`, of seconds from `least_s` to LONGEST_S; anything else is one line of error."""

    def parse(given: str | float) -> float:
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not least_s <= seconds <= LONGEST_S:  # nan neither
            raise UsageError(f"--timeout is {given}; expected seconds from {least_s:g} to {LONGEST_S:.0f}, such as 180")
        return seconds

    bounds = f"[{least_s:g}<=x<={LONGEST_S:.0f}]"
    return typer.Option("--timeout", parser=parse, metavar="<seconds>", help=f"{help_text} {bounds}")
