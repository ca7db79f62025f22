"""Where a rollout stands: one file, replaced atomically after each change.

So a crash at any point can be told, continued or undone.

rollout/
  state.json       the rollout that is under way, or the last one
  request.json     what an operator asks of the process that runs it
  history.jsonl    every version that got all requests, in their order
  audit.jsonl      who did what, when, on which numbers; appended to only
  labels.jsonl     labels that came back
  lock             held by the process that runs it
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from imgcls.files import append_text, write_atomic
from imgcls.rollout.errors import RolloutError
from imgcls.rollout.plan import Plan, Step

Status = Literal["running", "paused", "rolling-back", "promoted", "rolled-back"]
StepStatus = Literal["pending", "running", "done", "failed", "skipped"]
UNFINISHED: tuple[Status, ...] = ("running", "paused", "rolling-back")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Release(_Record):
    """A version by its content."""

    version: str
    archive: str  # in the gateway's store
    tree_sha256: str
    workers: int
    signer: str | None = None


class StepState(_Record):
    """One step of a rollout."""

    kind: Step
    weight: float | None = None  # of a canary step
    server: str | None = None  # of an instance step
    hold_s: float = 0.0
    status: StepStatus = "pending"
    started_s: float | None = None  # since the epoch
    ended_s: float | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """What it is called in views and the audit log: `canary 10 %`, `instance a`."""
        if self.server is not None:
            return f"{self.kind} {self.server}"
        return self.kind if self.weight is None else f"{self.kind} {self.weight:g} %"


class RolloutState(_Record):
    """One rollout."""

    id: str
    operator: str
    model: str
    source: str  # the archive's path, as it was given; or what an undo goes back to
    is_undo: bool = False
    stable: Release
    candidate: Release | None = None  # None until it is verified
    plan: Plan
    steps: tuple[StepState, ...]
    status: Status = "running"
    reason: str = ""  # why it was paused or rolled back
    looks: int = 0  # judgements within holds so far, over the whole rollout
    created_s: float
    ended_s: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to be done."""
        return self.status not in UNFINISHED

    def current(self) -> int | None:
        """Returns the number of the first step that is not done, None when all are."""
        return next((number for number, step in enumerate(self.steps) if step.status not in ("done", "skipped")), None)

    def with_step(self, number: int, **changes: Any) -> "RolloutState":
        """Returns the state with one step changed."""
        steps = list(self.steps)
        steps[number] = steps[number].model_copy(update=changes)
        return self.model_copy(update={"steps": tuple(steps)})


class RolloutFiles:
    """The files of the rollouts of one gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_file = folder / "state.json"
        self.request_file = folder / "request.json"
        self.history_file = folder / "history.jsonl"
        self.audit_file = folder / "audit.jsonl"
        self.labels_file = folder / "labels.jsonl"
        self.lock_file = folder / "lock"

    def read(self) -> RolloutState | None:
        """Returns the last rollout, None where there was none.

        Raises:
            RolloutError: state.json is broken.
        """
        try:
            return RolloutState.model_validate_json(self.state_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as err:
            raise RolloutError(
                f"{self.state_file}: cannot be read ({' '.join(str(err).split())[:200]}); imgcls status shows who gets "
                "requests; move the file away to begin anew"
            ) from err

    def write(self, state: RolloutState) -> None:
        """Writes state.json.

        Raises:
            RolloutError: it cannot be written; the old one stays.
        """
        with _written(self.state_file):
            write_atomic(self.state_file, state.model_dump_json(indent=1) + "\n")

    def take_request(self) -> str | None:
        """Returns what an operator asked for since, once."""
        request = self.read_request()
        try:
            self.request_file.unlink()
        except OSError:
            return None
        return request

    def read_request(self) -> str | None:
        """Returns what an operator asks for, which stays to be taken."""
        try:
            return str(json.loads(self.request_file.read_bytes())["request"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put_request(self, request: str) -> None:
        """Asks the process that runs the rollout for something.

        Raises:
            RolloutError: it cannot be written.
        """
        with _written(self.request_file):
            write_atomic(self.request_file, json.dumps({"request": request}))

    def append(self, path: Path, entry: Mapping[str, Any]) -> None:
        """Adds a line to history.jsonl or audit.jsonl and brings it to the disk.

        Raises:
            RolloutError: it cannot be written.
        """
        with _written(path):
            append_text(path, json.dumps(entry) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """Returns the versions that got all requests, oldest first."""
        return self.read_lines(self.history_file)

    def read_lines(self, path: Path) -> list[dict[str, Any]]:
        """Returns the lines of a file; one that a crash has cut short is left out."""
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
        return entries


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise RolloutError(
            f"{path}: cannot be written ({err.strerror or err}); make room or mend its folder, then continue with "
            "imgcls rollout start, or go back with imgcls rollout abort"
        ) from err
