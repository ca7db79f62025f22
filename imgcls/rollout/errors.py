"""Errors of rolling a version.

RolloutError
├── PlanError             a plan cannot be read, or asks for something that cannot be     exit 2
├── LabelsError           a file of labels cannot be read or written
├── HookError             what a plan calls around a step failed
├── StepFailedError       a step found that the new version must not go on
└── NoRolloutError        there is no rollout that this could be asked of
"""

from imgcls.errors import ImgclsError, UsageError


class RolloutError(ImgclsError):
    """A rollout cannot start or go on."""


class PlanError(RolloutError, UsageError):
    """A plan cannot be read, or asks for something that cannot be."""

    exit_code = 2


class LabelsError(RolloutError):
    """A file of labels cannot be read or written."""


class HookError(RolloutError):
    """What a plan calls around a step failed."""


class StepFailedError(RolloutError):
    """A step found that the new version must not go on."""


class NoRolloutError(RolloutError):
    """There is no rollout that this could be asked of."""
