"""Class names by index, and the ranking that every answer of the project uses.

`index_to_name.json` is TorchServe's own convention: {"0": "cat", "1": "dog"}. An operator may change the names in it
for display; the number of classes is the network's.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from model.errors import SpecError

LABELS_FILE = "index_to_name.json"


class Ranked(TypedDict):
    """One line of an answer."""

    label: str
    index: int
    probability: float


def dump_labels(names: Sequence[str]) -> str:
    """Returns the names as the text of an index_to_name.json."""
    return json.dumps({str(index): name for index, name in enumerate(names)}, indent=1, ensure_ascii=False) + "\n"


def read_labels(path: Path, *, count: int) -> tuple[str, ...]:
    """Reads index_to_name.json.

    Raises:
        SpecError: the file is missing, is not JSON, or does not name exactly the indices 0 to count - 1.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise SpecError(f"{path}: cannot be read as JSON: {err}") from err
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(count)}:
        got = f"{len(names)} keys" if isinstance(names, dict) else type(names).__name__
        raise SpecError(f'{path}: got {got}; expected an object with the keys "0" to "{count - 1}"')
    return tuple(str(names[str(index)]) for index in range(count))


def rank(probabilities: npt.NDArray[np.float32], *, names: Sequence[str], top_k: int) -> list[Ranked]:
    """Returns the `top_k` most probable classes, best first; equal probabilities keep the order of the classes.

    Args:
        probabilities: shape (classes,).
        names: one name a class.
        top_k: how many to return; more than there are classes returns them all.
    """
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [Ranked(label=names[index], index=int(index), probability=float(probabilities[index])) for index in order]
