"""Golden inputs: a few images with the answer that the packed classifier gave when the archive was built.

They lie in the archive's `golden/` folder. The handler answers them before it calls itself ready, and `imgcls serve`
sends them over HTTP. This module needs no torch, so that a light install can read them.

An answer is right when the expected class has the expected probability; which class came first is not compared, as of
two that are as likely either may. Each engine is compared with what it answered itself when the archive was built (int8
differs from eager by more than any machine may differ from another); how near it is to eager is in engines.json.
"""

import json
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import SpecError, describe_validation_error

GOLDEN_FOLDER = "golden"
EXPECTED_FILE = "expected.json"
ALL_CLASSES = 1_000_000  # as top_k, asks for every class, as the expected one may be any of them
GOLDEN_TOLERANCE = 0.01  # of a probability: other cores and other thread counts sum in another order


Probability = Annotated[float, Field(ge=0, le=1)]


class GoldenAnswer(BaseModel):
    """What one engine answered: the probability of the expected class, and how far another machine's may be from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probability: Probability
    tolerance: Probability = GOLDEN_TOLERANCE


class GoldenItem(BaseModel):
    """One input and its expected class, the best one for eager; `engines` holds the answers of the others by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    index: Annotated[int, Field(ge=0)]
    label: str
    probability: Probability
    engines: dict[str, GoldenAnswer] = Field(default_factory=dict)
    data: Annotated[bytes, Field(exclude=True, repr=False)] = b""


def parse_golden(text: str | bytes, *, read_file: Callable[[str], bytes]) -> tuple[GoldenItem, ...]:
    """Parses expected.json and reads each input.

    Args:
        text: the content of golden/expected.json.
        read_file: returns the bytes of a file of the golden folder.

    Raises:
        SpecError: the text is not a non-empty list of golden items.
    """
    where = f"{GOLDEN_FOLDER}/{EXPECTED_FILE}"
    try:
        fields = json.loads(text)
        items = [GoldenItem(**entry) for entry in fields]
    except ValidationError as err:
        raise SpecError(describe_validation_error(err, where=where)) from err
    except (ValueError, TypeError) as err:
        raise SpecError(f"{where}: cannot be read: {err}") from err
    if not items:
        raise SpecError(f"{where}: is empty; expected at least one golden input")
    return tuple(item.model_copy(update={"data": read_file(item.file)}) for item in items)


def describe_mismatch(item: GoldenItem, *, probability: float, engine: str | None = None) -> str | None:
    """Returns what is wrong with an answer to a golden input, or None when it is right.

    Args:
        item: the input.
        probability: that was answered for the class `item.index`.
        engine: that answered; None where that is not known: then the answer of any engine of the archive is right.
    """
    reference = GoldenAnswer(probability=item.probability)
    answers = [item.engines.get(engine, reference)] if engine else [reference, *item.engines.values()]
    if any(abs(probability - answer.probability) <= _allow(answer) for answer in answers):  # never of NaN
        return None
    expected = " or ".join(f"{answer.probability:.4f} ± {_allow(answer):.2g}" for answer in answers)
    return f"{item.file}: got probability {probability:.4f} for class {item.index} ({item.label}), expected {expected}"


def _allow(answer: GoldenAnswer) -> float:
    """Returns the tolerance; it shrinks with a probability below 0.1, or 1000 equal classes would hide anything."""
    return answer.tolerance * min(1, 10 * answer.probability)
