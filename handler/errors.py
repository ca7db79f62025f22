"""Errors of one request, and the status each is answered with.

    item ─ read_request ─► bytes, options ─ pixels_from_bytes ─► uint8 ─ Classifier ─► probabilities ─► answer
              │                                │                             │
              RequestError 400                 ImageError 400 413 415 422    NonFiniteAnswerError 500

Each is answered for its own item of the batch; the other items get their predictions.
"""

from typing import ClassVar

from model.errors import ModelError


class RequestError(ModelError):
    """The request is not one that this handler understands."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_request"


class NotOfferedError(RequestError):
    """The request asks for something that this archive does not do."""

    status = 501
    code = "not_offered"


class NonFiniteAnswerError(ModelError):
    """The network answered this image with NaN or infinity."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "non_finite_answer"
