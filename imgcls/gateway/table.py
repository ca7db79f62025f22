"""The table: which versions of which models there shall be, with how many workers, and which gets which requests.

It is the one wish that everything follows: Envoy's routes are generated from it, TorchServe's models are reconciled
with it, and a rollout is a series of changes to it. One file, replaced atomically, changed under a lock.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from imgcls.files import write_atomic
from imgcls.gateway.errors import BusyError, TableError
from imgcls.gateway.settings import describe_invalid
from model.written import Written

TABLE_FILE = "table.json"
WHOLE = 100.0
Percent = Annotated[float, Field(ge=0, le=100)]


class _Row(Written):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Autoscale(_Row):
    """Between how many workers the supervisor may choose, on each server."""

    min: Annotated[int, Field(ge=1)]
    max: Annotated[int, Field(ge=1, le=1000)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}; expected at most max, {self.max}")
        return self


class Hold(_Row):
    """New requests wait at the gateway, each for so long, as a server that is alone loses a worker."""

    server: str
    seconds: Annotated[float, Field(gt=0, le=60)]


class Version(_Row):
    """One version of a model that TorchServe shall have, whether or not it gets requests."""

    version: str
    archive: str  # the file's name in the gateway's store
    tree_sha256: str  # of its content
    workers: Annotated[int, Field(ge=0)]  # on each server
    min_ready: Annotated[int, Field(ge=1)] = 1  # fewer READY workers, on all servers together, and it is not ready
    weight: Percent = 0.0  # of the model's requests
    servers: tuple[str, ...] | None = None  # which have it; None: all
    autoscale: Autoscale | None = None  # workers follow the load; None: they stay
    draining: tuple[str, ...] = ()  # of these: get no new requests for a moment, as they lose a worker
    hold: Hold | None = None  # all new requests wait; None: none does


class Shadow(_Row):
    """A version that gets copies of requests; its answers are recorded and thrown away."""

    version: str
    percent: Percent


class Model(_Row):
    """A model's versions; the weights are 100 together."""

    name: str
    default: str  # what TorchServe itself answers with where nothing says a version, as for gRPC
    versions: Annotated[tuple[Version, ...], Field(min_length=1)]
    shadow: Shadow | None = None
    is_recorded: bool = False  # answers go into the access log, for a rollout to compare
    is_closed: bool = False  # no route leads here any more: it is taken away once what is in flight is answered

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [row.version for row in self.versions]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name}: versions are {', '.join(names)}; expected each once")
        total = round(sum(row.weight for row in self.versions), 2)
        if total != WHOLE:
            raise ValueError(f"{self.name}: weights are {total:g} together; expected 100")
        for what, version in (("default", self.default), ("shadow", self.shadow.version if self.shadow else None)):
            if version is not None and version not in names:
                raise ValueError(f"{self.name}: {what} is {version}; expected one of {', '.join(names)}")
        return self

    def find(self, version: str) -> Version | None:
        """Returns a version's row, None where there is none."""
        return next((row for row in self.versions if row.version == version), None)

    def get(self, version: str) -> Version:
        """Returns a version's row.

        Raises:
            TableError: there is none.
        """
        row = self.find(version)
        if row is None:
            known = ", ".join(each.version for each in self.versions)
            raise TableError(f"{self.name} has no version {version!r}; there is {known}")
        return row

    def with_version(self, row: Version) -> "Model":
        """Returns the model with a version added, or replaced; weights are not looked at until it is written."""
        others = tuple(other for other in self.versions if other.version != row.version)
        return self.model_copy(update={"versions": (*others, row)})

    def with_row(self, row: Version) -> "Model":
        """Returns the model with a version's row replaced in its place."""
        rows = tuple(row if each.version == row.version else each for each in self.versions)
        return self.model_copy(update={"versions": rows})

    def with_draining(self, version: str, server: str, *, is_draining: bool) -> "Model":
        """Returns the model with new requests kept away from one server's version, or let in again."""
        row = self.find(version)
        if row is None or (server in row.draining) == is_draining:
            return self
        others = tuple(name for name in row.draining if name != server)
        return self.with_row(row.model_copy(update={"draining": (*others, server) if is_draining else others}))

    def with_hold(self, version: str, hold: Hold | None) -> "Model":
        """Returns the model with new requests of a version held, or let through."""
        row = self.find(version)
        return self if row is None else self.with_row(row.model_copy(update={"hold": hold}))

    def without(self, version: str) -> "Model":
        """Returns the model without a version."""
        shadow = None if self.shadow and self.shadow.version == version else self.shadow
        rows = tuple(row for row in self.versions if row.version != version)
        return self.model_copy(update={"versions": rows, "shadow": shadow})

    def with_weights(self, weights: dict[str, float]) -> "Model":
        """Returns the model with these weights, and 0 for every version that is not named."""
        rows = tuple(row.model_copy(update={"weight": weights.get(row.version, 0.0)}) for row in self.versions)
        return self.model_copy(update={"versions": rows})


class Table(_Row):
    """All models; `generation` grows with every change, and names it."""

    generation: Annotated[int, Field(ge=0)] = 0
    models: tuple[Model, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError(f"models are {', '.join(names)}; expected each once")
        return self

    def find(self, name: str) -> Model | None:
        """Returns a model, None where there is none."""
        return next((model for model in self.models if model.name == name), None)

    def get(self, name: str) -> Model:
        """Returns a model.

        Raises:
            TableError: there is none of this name.
        """
        model = self.find(name)
        if model is None:
            known = ", ".join(model.name for model in self.models) or "none"
            raise TableError(f"no model {name!r} is served; there is {known}")
        return model

    def choose(self, name: str | None) -> Model:
        """Returns the model of this name, or the only one where none is named.

        Raises:
            TableError: there is none, or several are there to choose from.
        """
        if name is not None:
            return self.get(name)
        if len(self.models) == 1:
            return self.models[0]
        known = ", ".join(model.name for model in self.models) or "none"
        raise TableError(f"no model is named, and there is {known}; name one with --name")

    def with_model(self, model: Model) -> "Table":
        """Returns the table with a model added, or replaced in its place."""
        if self.find(model.name) is None:
            return self.model_copy(update={"models": (*self.models, model)})
        return self.model_copy(
            update={"models": tuple(model if other.name == model.name else other for other in self.models)}
        )


class TableFile:
    """The table on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, *, is_needed: bool = False) -> Table:
        """Returns the table; an empty one where there is no file, unless one is needed.

        Raises:
            TableError: the file is broken, or is gone.
        """
        try:
            return Table.model_validate_json(self.path.read_bytes())
        except FileNotFoundError as err:
            if is_needed:
                raise TableError(f"{self.path}: is gone; restore a copy, or stop and serve anew") from err
            return Table()
        except OSError as err:
            raise TableError(f"{self.path}: cannot be read ({err})") from err
        except ValidationError as err:
            raise TableError(
                f"{self.path}: is broken: {describe_invalid(err)}; restore a copy, or move it away and serve anew"
            ) from err

    def change(self, change: Callable[[Table], Table]) -> Table:
        """Reads, changes and writes the table, with nobody in between.

        Raises:
            TableError: the file is broken, or the change would leave it so; it stays as it was.
            OSError: it cannot be written.
        """
        with self.lock():
            before = self.read()
            after = change(before)
            if after == before:
                return before
            try:  # copies are not validated
                checked = Table.model_validate(after.model_dump() | {"generation": before.generation + 1})
            except ValidationError as err:
                raise TableError(f"the table would be broken: {describe_invalid(err)}") from err
            write_atomic(self.path, checked.model_dump_json(indent=2) + "\n")
            return checked

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Waits for its turn to change the table; the kernel lets go when a process ends, however it does."""
        with self.path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def exclusive(path: Path, *, busy: str) -> Iterator[None]:
    """Holds a lock file for as long as a long piece of work takes.

    Raises:
        BusyError: another process holds it; `busy` says what that means.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise BusyError(busy) from err
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file; changes nothing, so it can be told where nothing can be written."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
