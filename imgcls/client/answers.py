"""What a server answers, as typed values or typed errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imgcls.client.errors import (
    BadImageError,
    BadRequestError,
    ModelNotFoundError,
    NotAuthorisedError,
    OverloadedError,
    ServerError,
    UnexpectedAnswerError,
)
from imgcls.errors import ClientError

OVERLOADED = (429, 503)
NOT_AUTHORISED = (401, 403)
TOKEN_REFUSED = "InvalidKeyException"  # TorchServe's type for it, with status 400
BAD_REQUEST_CODES = ("bad_request", "not_offered")


@dataclass(frozen=True)
class RankedClass:
    """One class of an answer."""

    label: str
    index: int
    probability: float  # 0..1


@dataclass(frozen=True)
class Prediction:
    """The answer to one image: its classes, the most probable one first."""

    model: str
    version: str
    ranked: tuple[RankedClass, ...]

    @property
    def best(self) -> RankedClass:
        """The most probable class."""
        return self.ranked[0]


def parse_prediction(body: Any) -> Prediction:
    """Parses the JSON of a 200.

    Raises:
        UnexpectedAnswerError: it is not an answer of imgcls' handler.
    """
    try:
        ranked = tuple(
            RankedClass(label=str(entry["label"]), index=int(entry["index"]), probability=float(entry["probability"]))
            for entry in body["predictions"]
        )
        prediction = Prediction(model=str(body["model"]), version=str(body["version"]), ranked=ranked)
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        reason = f"got an answer that is none of imgcls' handler ({type(err).__name__}: {err})"
        raise UnexpectedAnswerError(f"{reason}; is this a model that imgcls has built?") from err
    if not ranked:
        raise UnexpectedAnswerError("got an answer with no class in it; expected at least one")
    return prediction


def error_of(status: int, body: Any, *, text: str) -> ClientError:
    """Returns the error that an answer other than 200 stands for.

    Args:
        status: the HTTP status.
        body: the parsed JSON; None where there is none.
        text: the raw answer, told where nothing better is known.
    """
    fields = body if isinstance(body, Mapping) else {}
    own = fields.get("error")
    if isinstance(own, Mapping):
        return _handler_error(status, code=str(own.get("code")), reason=str(own.get("reason")))
    message = " ".join(str(fields.get("message") or text or "no reason given").split())[:300]
    return _torchserve_error(status, message=message, is_token_refused=fields.get("type") == TOKEN_REFUSED)


def _handler_error(status: int, *, code: str, reason: str) -> ClientError:
    if code in BAD_REQUEST_CODES:
        return BadRequestError(f"{reason} ({status} {code})")
    if status >= 500:
        return ServerError(f"{reason} ({status} {code})")
    return BadImageError(status=status, code=code, reason=reason)


def _torchserve_error(status: int, *, message: str, is_token_refused: bool) -> ClientError:
    if is_token_refused or status in NOT_AUTHORISED:
        return NotAuthorisedError(
            f"the token is missing, wrong or expired ({status}); give the server's with --token or IMGCLS_TOKEN"
        )
    if status == 404:
        return ModelNotFoundError(f"{message} (404); imgcls status tells what is served")
    if status == 413:
        return BadImageError(
            status=status, code="request_too_large", reason="the request is larger than the server accepts"
        )
    if status in OVERLOADED:
        return OverloadedError(f"{message} ({status}); try again later, or add workers with imgcls scale")
    if status >= 500:
        return ServerError(f"{message} ({status})")
    return BadRequestError(f"{message} ({status})")
