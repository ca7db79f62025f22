"""evaluation/NAME.robustness.json: the accuracy that a run keeps under corruptions; torch-free."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from imgcls.errors import RunError
from imgcls.evaluation.bootstrap import Interval
from imgcls.evaluation.reports import hash_weights
from imgcls.evaluation.stored import EVALUATION_FOLDER


class Corrupted(BaseModel):
    """Accuracy under one corruption at one severity, with Wilson's 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    corruption: str
    severity: int
    accuracy: float
    interval: Interval


class Robustness(BaseModel):
    """One test set's: `clean` is the accuracy of the same images unchanged.

    `images_sha256` names all images of the set that the `samples` were drawn from, as `TestReport` does; None in a
    record of an earlier version. `skipped` files could not be used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights_sha256: str
    source: str
    images_sha256: str | None = None
    samples: int
    skipped: int = 0
    clean: float
    results: list[Corrupted]

    @property
    def mean(self) -> float:
        """The mean accuracy over corruptions and severities, each alike."""
        return sum(each.accuracy for each in self.results) / len(self.results)

    def by_corruption(self) -> dict[str, list[Corrupted]]:
        """Returns the results of each corruption, by severity."""
        return {
            name: [each for each in self.results if each.corruption == name]
            for name in dict.fromkeys(each.corruption for each in self.results)
        }


def read_robustness(run: Path, name: str) -> Robustness | None:
    """Reads what was measured of a run's present weights; None where nothing was.

    Raises:
        RunError: the file is broken.
    """
    path = run / EVALUATION_FOLDER / f"{name}.robustness.json"
    try:
        found = Robustness.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as err:
        raise RunError(f"{path}: cannot be read: {str(err).splitlines()[0]}; run imgcls robustness again") from err
    return found if found.weights_sha256 == hash_weights(run) else None
