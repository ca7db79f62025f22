"""Errors of tuning.

TuningError
├── LoadError             k6 is missing, failed, or the images cannot be sent
└── CandidateError        one candidate could not be served; the others still can
"""

from imgcls.errors import ImgclsError


class TuningError(ImgclsError):
    """Tuning cannot go on."""


class LoadError(TuningError):
    """The load generator is missing or failed, or there is nothing that it could send."""


class CandidateError(TuningError):
    """One candidate could not be served; the others still can."""
