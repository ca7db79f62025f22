"""Measured comparisons: each number with its command, machine and date; ratios within one run."""

import os
from datetime import date
from typing import TYPE_CHECKING

from imgcls.tuning.machine import find_processor

if TYPE_CHECKING:
    import torch


def describe_machine() -> str:
    """Returns what stands beside a measured number: cores, processor and date."""
    return f"{len(os.sched_getaffinity(0))} cores, {find_processor()}; {date.today()}"


def describe_device(device: "torch.device") -> str:
    """Returns what a device is called."""
    import torch  # here, as few measurements need it

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
