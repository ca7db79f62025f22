"""Golden inputs: a few images with the answer that the packed classifier gave when the archive was built.

They lie in the archive's `golden/` folder. The handler answers them before it calls itself ready, and `imgcls serve`
sends them over HTTP. This module needs no torch, so that a light install can read them.
"""

import json
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import SpecError, describe_validation_error

GOLDEN_FOLDER = "golden"
EXPECTED_FILE = "expected.json"
GOLDEN_TOLERANCE = 0.01  # of a probability: other cores and other thread counts sum in another order


class GoldenItem(BaseModel):
    """One input and its expected best class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    index: Annotated[int, Field(ge=0)]
    label: str
    probability: Annotated[float, Field(ge=0, le=1)]
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


def describe_mismatch(item: GoldenItem, *, index: int, probability: float) -> str | None:
    """Returns what is wrong with an answer to a golden input, or None when it is right."""
    if index != item.index:
        return f"{item.file}: got class {index}, expected {item.index} ({item.label})"
    if not abs(probability - item.probability) <= GOLDEN_TOLERANCE:  # also catches NaN
        return f"{item.file}: got probability {probability:.4f}, expected {item.probability:.4f} ± {GOLDEN_TOLERANCE}"
    return None
