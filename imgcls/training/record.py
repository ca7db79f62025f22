"""train_record.json: which code, which data and which libraries a run was trained with.

Made by `imgcls.training.recording` and written by train.py at its start, so that a killed run has it too; read when an
archive is built. It holds no time, no absolute path and no name of a user or host: equal runs write equal records.
Needs neither torch nor the `train` extra.
"""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from imgcls.checkout import HOME, hash_code, hash_locks, read_git
from imgcls.errors import RunError
from imgcls.files import write_atomic

RECORD_FILE = "train_record.json"
REJECTIONS_FILE = "rejections.csv"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CodeRecord(_Part):
    """Code that ran; without git its commit is None."""

    git_commit: str | None
    git_dirty: bool | None
    sha256: str  # dirHash, as imgcls.checkout.hash_code makes it
    locks: dict[str, str]  # SHA-256 by name


class SplitRecord(_Part):
    """One split, as imgcls.data.digests.Fingerprint describes it; without its digest where that is not published."""

    files: int
    unreadable: int
    classes: dict[str, int]
    sha256: str | None


class DataRecord(_Part):
    """The data; of a source that lies at an absolute path only the last name is kept."""

    source: str
    splits: dict[str, SplitRecord]


class ParentRecord(_Part):
    """The weights that training started from, a local file's or timm's by their name; or a teacher run's."""

    name: str
    sha256: str | None = None


class RejectionRecord(_Part):
    """What the backward filter rejected: the digest of rejections.csv, and how often each event had each reason."""

    sha256: str
    counts: dict[str, int]


class PrivacyRecord(_Part):
    """What DP-SGD has spent: the training images' (epsilon, delta) after `steps`, for weights of any of its epochs."""

    mechanism: Literal["DP-SGD, Poisson sampling"] = "DP-SGD, Poisson sampling"
    accountant: Literal["RDP"] = "RDP"
    noise_multiplier: float
    clip_norm: float
    sample_rate: float
    steps: int
    epsilon: float
    delta: float


class Resumption(_Part):
    """A later part of the run; `changed` holds what of the record was different then.

    It began in `first_epoch`, when `first_step` steps of the run were done.
    """

    first_epoch: int
    first_step: int = 0
    changed: dict[str, Any]


class TrainRecord(_Part):
    """The content of train_record.json.

    `first_epoch` is 1, unless a run was resumed whose earlier part left no record: then nothing is known of that part.
    """

    format: Literal["imgcls-train-record/1"] = "imgcls-train-record/1"
    code: CodeRecord
    data: DataRecord
    seed: int
    device: str
    parent: ParentRecord | None
    teacher: ParentRecord | None = None
    versions: dict[str, str]
    first_epoch: int = 1
    resumed: tuple[Resumption, ...] = ()
    rejections: RejectionRecord | None = None
    privacy: PrivacyRecord | None = None


def write_record(run: Path, record: TrainRecord, *, first_epoch: int, first_step: int) -> None:
    """Writes train_record.json; of a resumed run, one with steps done, it keeps the start and adds what has changed.

    Raises:
        RunError: the resumed run's record cannot be read.
    """
    path = run / RECORD_FILE
    if first_step and path.exists():
        record = _add_resumption(read_record(path), record, first_epoch=first_epoch, first_step=first_step)
    elif first_step:
        record = record.model_copy(update={"first_epoch": first_epoch})
    write_atomic(path, format_record(record))


def write_rejections(run: Path, rejections: RejectionRecord) -> None:
    """Writes into a run's train_record.json what has been rejected so far.

    Raises:
        RunError: the record cannot be read.
    """
    _update(run, rejections=rejections)


def write_privacy(run: Path, privacy: PrivacyRecord) -> None:
    """Writes into a run's train_record.json what its privacy has cost so far.

    Raises:
        RunError: the record cannot be read.
    """
    _update(run, privacy=privacy)


def _update(run: Path, **parts: RejectionRecord | PrivacyRecord) -> None:
    record = read_record(run / RECORD_FILE).model_copy(update=parts)
    write_atomic(run / RECORD_FILE, format_record(record))


def read_record(path: Path) -> TrainRecord:
    """Reads a train_record.json.

    Raises:
        RunError: it is missing, or not what `write_record` writes.
    """
    try:
        return TrainRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as err:
        reason = " ".join(str(err).split())
        raise RunError(
            f"{path}: is not what train.py writes ({reason}); delete it to go on without what it recorded"
        ) from err


def read_published(path: Path) -> TrainRecord:
    """Reads of a train_record.json what archives, reports and MLflow may hold.

    That is all of it, but of a private run no digest of training and validation images: with it, whoever has all
    images but one can try which one that was. The run directory keeps it, to tell what a resumed run changed.

    Raises:
        RunError: as `read_record` says.
    """
    record = read_record(path)
    if record.privacy is None:
        return record
    resumed = tuple(part.model_copy(update={"changed": _leave_out_changed(part.changed)}) for part in record.resumed)
    return record.model_copy(update={"data": _leave_out_digests(record.data), "resumed": resumed})


def format_record(record: TrainRecord) -> str:
    """Returns the text of a train_record.json."""
    return record.model_dump_json(indent=1) + "\n"


def describe_code(names: Sequence[str]) -> CodeRecord:
    """Describes these packages and modules of the running code, and the checkout that they lie in."""
    git = read_git()
    return CodeRecord(
        git_commit=git.commit if git else None,
        git_dirty=git.is_dirty if git else None,
        sha256=hash_code(HOME, names),
        locks=hash_locks(),
    )


def describe_source(text: str) -> str:
    """Returns a source string without what it tells of this machine: of an absolute or upward path, the last name."""
    path = Path(text)
    return path.name if path.is_absolute() or {"..", "~"} & set(path.parts) else text


def find_versions(names: Sequence[str]) -> dict[str, str]:
    """Returns the version of each of these distributions that is installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _leave_out_digests(data: DataRecord) -> DataRecord:
    splits = {
        name: split if name == "test" else split.model_copy(update={"sha256": None})
        for name, split in data.splits.items()
    }
    return data.model_copy(update={"splits": splits})


def _leave_out_changed(changed: dict[str, Any]) -> dict[str, Any]:
    return {name: "left out: the run is private" if name == "data" else value for name, value in changed.items()}


def _add_resumption(earlier: TrainRecord, now: TrainRecord, *, first_epoch: int, first_step: int) -> TrainRecord:
    facts = ("code", "data", "seed", "device", "versions")  # a resumed run's weights come from its own checkpoint
    before, after = earlier.model_dump(mode="json"), now.model_dump(mode="json")
    changed = {name: after[name] for name in facts if after[name] != before[name]}
    last = Resumption(first_epoch=first_epoch, first_step=first_step, changed=changed)
    kept = [part for part in earlier.resumed if (part.first_epoch, part.first_step) < (first_epoch, first_step)]
    return earlier.model_copy(update={"resumed": (*kept, last)})  # a part that did no step left nothing
