"""Errors of rolling a version.

RolloutError
├── PlanError             a plan cannot be read, or asks for something that cannot be     exit 2
└── LabelsError           a file of labels cannot be read or written
"""

from imgcls.errors import ImgclsError, UsageError


class RolloutError(ImgclsError):
    """A rollout cannot start or go on."""


class PlanError(RolloutError, UsageError):
    """A plan cannot be read, or asks for something that cannot be."""

    exit_code = 2


class LabelsError(RolloutError):
    """A file of labels cannot be read or written."""
