"""evaluation/NAME.npz: every answer on one test set, so that runs can be compared later without their images.

Written by `imgcls evaluate`, read by `imgcls compare`, `gate` and `report`; needs neither torch nor the data.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
import numpy.typing as npt

from imgcls.errors import RunError
from imgcls.evaluation.bootstrap import Answers
from imgcls.evaluation.reports import hash_weights
from imgcls.evaluation.slices import Columns
from imgcls.files import write_atomic
from model.spec import SPEC_FILE, read_spec

EVALUATION_FOLDER = "evaluation"
_COLUMN = "column:"
# What numpy, zipfile and zlib raise for one damaged byte, by where it lies; an unknown packing is a RuntimeError.
_BROKEN = (OSError, ValueError, KeyError, EOFError, RuntimeError, TokenError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Stored:
    """The answers of one run on one test set.

    Attributes:
        names: of the images, (N,).
        labels: the true classes, (N,), as indices into `classes`.
        probabilities: (N, classes).
        classes: the run's.
        columns: the values that slices are made by, (N,) each.
        images_sha256: which images they are.
    """

    names: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    columns: Columns
    images_sha256: str

    @property
    def answers(self) -> Answers:
        """What was predicted."""
        return Answers.of(self.labels, self.probabilities)


def write_stored(folder: Path, name: str, stored: Stored, *, run: Path) -> None:
    """Writes the answers of a test set, bound to the weights and the temperature that gave them."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "names": stored.names,
        "labels": stored.labels,
        "probabilities": stored.probabilities,
        "classes": np.array(stored.classes),
        "images_sha256": np.array(stored.images_sha256),
        "origin": np.array(_name_origin(run)),
        **{f"{_COLUMN}{column}": values for column, values in stored.columns.items()},
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    target = folder / EVALUATION_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    write_atomic(target / f"{name}.npz", buffer.getvalue())


def read_stored(run: Path, name: str) -> Stored:
    """Reads the answers of a run on a test set.

    Raises:
        RunError: they are missing, broken, or of other weights than the run's.
    """
    path = run / EVALUATION_FOLDER / f"{name}.npz"
    advice = f"measure it with imgcls evaluate {run} --test {name}=SOURCE"
    if not path.is_file():
        raise RunError(f"{path}: is missing; {advice}")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        stored, origin = _parse(arrays), str(arrays["origin"])
    except _BROKEN as err:
        raise RunError(f"{path}: cannot be read: {err}; {advice}") from err
    if origin != _name_origin(run):
        raise RunError(f"{path}: was measured with other weights or another temperature than the run has; {advice}")
    return stored


def list_stored(run: Path) -> list[str]:
    """Returns the names of the test sets that a run has answers on."""
    return sorted(path.stem for path in (run / EVALUATION_FOLDER).glob("*.npz"))


def _parse(arrays: dict[str, npt.NDArray[np.generic]]) -> Stored:
    return Stored(
        names=np.asarray(arrays["names"], dtype=np.str_),
        labels=np.asarray(arrays["labels"], dtype=np.int64),
        probabilities=np.asarray(arrays["probabilities"], dtype=np.float32),
        classes=tuple(str(name) for name in arrays["classes"]),
        columns={
            key.removeprefix(_COLUMN): np.asarray(values, dtype=np.str_)
            for key, values in arrays.items()
            if key.startswith(_COLUMN)
        },
        images_sha256=str(arrays["images_sha256"]),
    )


def _name_origin(run: Path) -> str:
    return f"{hash_weights(run)} {read_spec(run / SPEC_FILE).temperature!r}"
