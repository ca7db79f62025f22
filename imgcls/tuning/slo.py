"""What is wanted of the latency, and how long looking for it may take, as the command line writes them."""

import math
import re
from dataclasses import dataclass

from imgcls.errors import UsageError

PERCENTILES = (50, 75, 90, 95, 99, 99.9)
LONGEST_LIMIT_MS = 600_000.0
LONGEST_S = 1e6

_SLO = re.compile(r"p(?P<percentile>\d+(?:\.\d+)?)\s*(?:=|<=|<)\s*(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>ms|s)")
_DURATION = re.compile(r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Slo:
    """A service level objective: so many percent of the answers come within so many milliseconds."""

    percentile: float
    limit_ms: float

    @property
    def needed_samples(self) -> int:
        """How many answers it takes until the percentile is not just the slowest one."""
        return math.ceil(round(100 / (100 - self.percentile), 6))

    def __str__(self) -> str:
        """Returns it as it is written on the command line."""
        return f"p{self.percentile:g}={self.limit_ms:g}ms"


def parse_slo(text: str) -> Slo:
    """Parses `p99=50ms`.

    Raises:
        UsageError: it is none.
    """
    match = _SLO.fullmatch(text.strip().lower())
    names = ", ".join(f"p{each:g}" for each in PERCENTILES)
    expected = f"expected one of {names}, and a limit in ms or s up to 600s, such as p99=50ms"
    if match is None:
        raise UsageError(f"--slo is {text!r}; {expected}")
    percentile, limit_ms = float(match["percentile"]), float(match["value"]) * _SECONDS[match["unit"]] * 1000
    if percentile not in PERCENTILES or not 0 < limit_ms <= LONGEST_LIMIT_MS:
        raise UsageError(f"--slo is {text!r}; {expected}")
    return Slo(percentile, limit_ms)


def parse_duration(text: str, *, option: str, least_s: float = 0.0) -> float:
    """Parses `5m`, `90s` or `1h` into seconds.

    Args:
        text: what was given.
        option: whose value it is, for the message.
        least_s: what it has to be at least.

    Raises:
        UsageError: it is none, 0, shorter or absurdly long.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = float(match["value"]) * _SECONDS[match["unit"]] if match else 0.0
    if not 0 < seconds <= LONGEST_S:
        raise UsageError(f"{option} is {text!r}; expected seconds, minutes or hours, such as 90s or 5m")
    if seconds < least_s:
        raise UsageError(f"{option} is {text!r}; expected {least_s:g}s or longer")
    return seconds
