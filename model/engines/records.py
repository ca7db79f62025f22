"""engines.json: which engines an archive holds, and how near each comes to the eager one.

Written by `imgcls.archive.engines`, read by the handler, the model card and `imgcls archive inspect`. No torch and no
numpy, so that a light install can read it.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.engines.kinds import REFERENCE
from model.errors import EngineError, describe_validation_error
from model.spec import WEIGHTS_FILE

ENGINES_FILE = "engines.json"
ENGINES_FOLDER = "engines"

Share = Annotated[float, Field(ge=0, le=1)]
Distance = Annotated[float, Field(ge=0)]
InArchive = Annotated[str, Field(pattern=rf"^({re.escape(WEIGHTS_FILE)}|{ENGINES_FOLDER}/[A-Za-z0-9][A-Za-z0-9._-]*)$")]


class Tolerance(BaseModel):
    """How far an engine may be from eager on the compared images, and another machine's from its own golden answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probability_shift: Share
    top1_loss: Share
    accuracy_drop: Share
    golden: Share


class Comparison(BaseModel):
    """An engine beside eager float32, on real images.

    Attributes:
        compared_on: which images.
        images: how many.
        largest_logit_difference: over all images and classes.
        top1_agreement: share of the images with the same best class.
        top1_loss: the probability that eager gives to its best class, less what it gives to the engine's, on average. 0
            where they agree, next to nothing where two classes are as likely; of a calibrated network it is the
            expected loss of accuracy.
        probability_shift: how far the probability of eager's best class moves, on average.
        accuracy: on the same images, where their labels are known.
        reference_accuracy: eager's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    compared_on: str
    images: Annotated[int, Field(ge=0)]
    largest_logit_difference: Distance
    top1_agreement: Share
    top1_loss: Share
    probability_shift: Share
    accuracy: Share | None = None
    reference_accuracy: Share | None = None


class EngineRecord(BaseModel):
    """One engine of an archive.

    Attributes:
        engine: its name, as in model.engines.kinds.KINDS.
        device: "cpu" or "cuda": where it was built and compared.
        file: path in the archive.
        sha256: of the file.
        reproducible: whether building it again gives the same bytes.
        built_with: the packages that made it.
        calibrated_on: the images that int8 ranges come from.
        comparison: with eager; None for eager itself, and where the engine could not be built.
        status: whether it is packed and may be picked.
        reason: why.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    device: Literal["cpu", "cuda"] = "cpu"
    file: InArchive | None = None
    sha256: str | None = None
    reproducible: bool = True
    built_with: str | None = None
    calibrated_on: str | None = None
    tolerance: Tolerance | None = None
    comparison: Comparison | None = None
    status: Literal["accepted", "refused"]
    reason: str

    @property
    def is_accepted(self) -> bool:
        """Whether it is packed and may be picked."""
        return self.status == "accepted"


REFERENCE_RECORD = EngineRecord(
    engine=REFERENCE, file=WEIGHTS_FILE, status="accepted", reason="the reference, which the others are compared with"
)


def dump_records(records: Sequence[EngineRecord]) -> str:
    """Returns the text of engines.json."""
    return json.dumps([record.model_dump() for record in records], indent=1, ensure_ascii=False) + "\n"


def parse_records(text: str | bytes) -> tuple[EngineRecord, ...]:
    """Parses engines.json.

    Raises:
        EngineError: it is not what `dump_records` writes.
    """
    try:
        return tuple(EngineRecord(**entry) for entry in json.loads(text))
    except ValidationError as err:
        raise EngineError(describe_validation_error(err, where=ENGINES_FILE)) from err
    except (ValueError, TypeError) as err:
        raise EngineError(f"{ENGINES_FILE}: cannot be read: {err}; build the archive again") from err


def read_records(folder: Path) -> tuple[EngineRecord, ...]:
    """Reads the engines.json of an unpacked archive; without one there is the eager engine only.

    Raises:
        EngineError: it cannot be read.
    """
    path = folder / ENGINES_FILE
    return parse_records(path.read_bytes()) if path.is_file() else (REFERENCE_RECORD,)
