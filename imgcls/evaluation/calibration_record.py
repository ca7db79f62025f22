"""calibration.json: how the temperature in a run's spec was found, and for which weights; torch-free."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from imgcls.errors import RunError

CALIBRATION_FILE = "calibration.json"


class CalibrationRecord(BaseModel):
    """What `imgcls calibrate` did; losses are mean negative log-likelihoods in nats, `ece` is as in metrics.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights_sha256: str
    temperature: float
    source: str
    split: str
    images: int
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float


def refuse_stale_calibration(folder: Path, *, temperature: float, weights_sha256: str) -> None:
    """Checks that a temperature other than 1 was fitted for these weights: training on would leave an old one behind.

    Raises:
        RunError: it was not, or nothing tells.
    """
    if temperature == 1:
        return
    path = folder / CALIBRATION_FILE
    try:
        record = CalibrationRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as err:
        reason = str(err).splitlines()[0]
        raise RunError(
            f"{CALIBRATION_FILE}: cannot be read ({reason}), and spec.yaml has temperature {temperature:g}; "
            "run imgcls calibrate, or set it to 1"
        ) from err
    if (record.weights_sha256, record.temperature) != (weights_sha256, temperature):
        raise RunError(
            f"{CALIBRATION_FILE}: temperature {record.temperature:g} was fitted for other weights, or spec.yaml has "
            "another; run imgcls calibrate again"
        )
