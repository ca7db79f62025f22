"""Errors of one prediction.

ClientError
├── BadImageError           4xx  the image cannot be classified; carries status, code and reason
├── BadRequestError         4xx  the server does not understand the request
├── NotAuthorisedError      400  the token is missing, wrong or expired (TorchServe answers 400), or 401, 403
├── ModelNotFoundError      404  no such model or version
├── OverloadedError    503, 429  the queue is full, or no worker takes requests: worth another try later
├── ServerError             5xx  the server failed on this request
├── UnexpectedAnswerError        the answer is not what imgcls' handler answers with
├── ConnectionFailedError        nobody listens, or the connection broke
└── RequestTimeoutError          no answer in time; the server may still be at work on it
"""

from imgcls.errors import ClientError


class BadImageError(ClientError):
    """The image cannot be classified; trying it again does not help.

    Args:
        status: HTTP status: 400 empty, 413 too large, 415 unsupported, 422 undecodable.
        code: the handler's name for it, such as "undecodable_image".
        reason: in words.
    """

    def __init__(self, *, status: int, code: str, reason: str) -> None:
        super().__init__(f"{reason} ({status} {code})")
        self.status = status
        self.code = code
        self.reason = reason


class BadRequestError(ClientError):
    """The server does not understand the request."""


class NotAuthorisedError(ClientError):
    """The token is missing, wrong or expired."""


class ModelNotFoundError(ClientError):
    """The server has no such model, or no such version of it."""


class OverloadedError(ClientError):
    """The queue is full, or no worker takes requests."""


class ServerError(ClientError):
    """The server failed on this request."""


class UnexpectedAnswerError(ClientError):
    """The answer is not what imgcls' handler answers with."""


class ConnectionFailedError(ClientError):
    """Nobody listens at this URL, or the connection broke."""


class RequestTimeoutError(ClientError):
    """There was no answer in time; the server may still be at work on it."""
