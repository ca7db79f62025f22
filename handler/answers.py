"""Writes the answer to a request in the form that it came in: its status, content type and body.

A request with one image has that image's status. One that lists images is a 200 with a status for each, so that one bad
image costs the others nothing; docs/requests.md has them all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler.errors import Failure
from handler.open_inference import describe_failure, write_outputs
from handler.request import Form, Request

OK = 200
SERVER_ERROR = 500
Result = Mapping[str, Any] | Failure  # of one image: `predictions` and perhaps `explanation`, or what went wrong


@dataclass(frozen=True)
class Picture:
    """An explanation as a PNG."""

    data: bytes


@dataclass(frozen=True)
class Answer:
    """What TorchServe sends to the client; `phrase` stands beside the status, and must be ASCII."""

    body: bytes
    status: int = OK
    phrase: str = ""
    content_type: str = "application/json"


def write_answer(request: Request, results: Sequence[Result | Picture], *, model: str, version: str) -> Answer:
    """Answers a request.

    Args:
        request: as it was read.
        results: one for each of its images.
        model: its name.
        version: the model's.
    """
    origin = {"model": model, "version": version}
    if request.error:
        return write_failure(request.error, form=request.form)
    if isinstance(results[0], Picture):
        return Answer(results[0].data, content_type="image/png")
    found = [result for result in results if not isinstance(result, Picture)]
    first = found[0]
    if request.form in (Form.IMAGE, Form.OPEN_INFERENCE) and len(found) == 1 and isinstance(first, Failure):
        return write_failure(first, form=request.form)
    if request.form is Form.IMAGE and not isinstance(first, Failure):
        return _write({**origin, **first})
    if request.form is Form.KSERVE:
        return _write(_answer_kserve(found, is_explanation=request.kind != "prediction"))
    if request.form is Form.OPEN_INFERENCE:
        answer = {"model_name": model, "model_version": version}
        answer |= {} if request.id is None else {"id": request.id}
        return _write({**answer, "outputs": write_outputs(found, names=request.outputs)})
    names = [{"name": name} for name in request.names] or [{} for _ in found]
    return _write(
        {**origin, "results": [{**name, **_answer_one(each)} for name, each in zip(names, found, strict=True)]}
    )


def write_failure(failure: Failure, *, form: Form) -> Answer:
    """Answers a request that failed as a whole."""
    error: Any = {"code": failure.code, "reason": str(failure)}
    if form is Form.OPEN_INFERENCE:
        error = describe_failure(failure)
    answer = _write({"error": error})
    return Answer(answer.body, status=failure.status, phrase=failure.code)


def _answer_one(result: Result) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"status": result.status, "error": {"code": result.code, "reason": str(result)}}
    return {"status": OK, **result}


def _answer_kserve(results: Sequence[Result], *, is_explanation: bool) -> dict[str, Any]:
    answers = [_answer_one(result) for result in results]
    explanations = [answer.pop("explanation", None) for answer in answers]
    return {"predictions": answers} | ({"explanations": explanations} if is_explanation else {})


def _write(answer: Mapping[str, Any]) -> Answer:
    return Answer(json.dumps(answer, allow_nan=False).encode())
