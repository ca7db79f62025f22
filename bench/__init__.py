"""Measured comparisons: each number with its command, machine and date; ratios within one run."""

import os
from datetime import date

from imgcls.tuning.machine import find_processor


def describe_machine() -> str:
    """Returns what stands beside a measured number: cores, processor and date."""
    return f"{len(os.sched_getaffinity(0))} cores, {find_processor()}; {date.today()}"
