"""Errors of one image or one request, and the status each is answered with.

    request ─ read_request ─► images ─ read ─► bytes ─ pixels_from_bytes ─► uint8 ─ engine ─► probabilities ─► answer
                  │                      │                  │                       │
                  RequestError           RequestError 400   ImageError              NonFiniteAnswerError 500
                  ├ bad_request 400                         400 413 415 422         EngineFailedError 500
                  ├ UnsupportedTensorError 415                                      MemoryExhaustedError 507
                  ├ TooManyImagesError 413                                          ExplanationError 500
                  ├ NotAcceptableError 406                                          OutOfTimeError 503
                  ├ NotOfferedError 501
                  └ DeadlineExceededError 504

What goes wrong with one image is answered for that image; the others of its request and of its batch get their
predictions. Each is documented, with its status, in docs/requests.md.
"""

from typing import ClassVar

from model.errors import ImageError, ModelError


class ServingError(ModelError):
    """Something that the handler answers with a status of its own."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"


class RequestError(ServingError):
    """The request is not one that this handler understands."""

    status = 400
    code = "bad_request"


class UnsupportedTensorError(RequestError):
    """A tensor of the Open Inference Protocol is of a type that holds no image files."""

    status = 415
    code = "unsupported_tensor"


class TooManyImagesError(RequestError):
    """The request holds more images than one may."""

    status = 413
    code = "too_many_images"


class NotAcceptableError(RequestError):
    """The request wants an answer of a kind that there is not for it."""

    status = 406
    code = "not_acceptable"


class NotOfferedError(RequestError):
    """The request asks for something that this server does not do."""

    status = 501
    code = "not_offered"


class DeadlineExceededError(RequestError):
    """The gateway has given the request up by now, and its client an answer."""

    status = 504
    code = "deadline_exceeded"


class NonFiniteAnswerError(ServingError):
    """The network answered this image with NaN or infinity."""

    code = "non_finite_answer"


class EngineFailedError(ServingError):
    """The engine raised an error at this image, alone in its batch."""

    code = "engine_failed"


class ExplanationError(ServingError):
    """The network that explains cannot be loaded, or failed at this image."""

    code = "explanation_failed"


class MemoryExhaustedError(ServingError):
    """There was not enough memory for this image; the worker goes on."""

    status = 507
    code = "out_of_memory"


class OutOfTimeError(ServingError):
    """The other explanations of the batch have used the time up."""

    status = 503
    code = "out_of_time"


Failure = ServingError | ImageError  # both have a status and a code
