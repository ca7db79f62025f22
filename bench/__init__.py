"""Measured comparisons: each number with its command, machine and date; ratios within one run."""

import os
import platform
from datetime import date


def describe_machine() -> str:
    """Returns what stands beside a measured number: cores, architecture and date."""
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}; {date.today()}"
