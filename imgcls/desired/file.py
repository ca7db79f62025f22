"""desired.yaml: the models, versions, workers and weights that a gateway shall have.

Unknown keys are errors. A path of an archive is meant from the file's folder.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from imgcls.errors import UsageError
from imgcls.gateway.settings import Settings
from imgcls.gateway.store import Store, Stored
from imgcls.gateway.table import WHOLE, Autoscale, Model, Percent, Table, Version
from imgcls.rollout.plan import Hundredths
from imgcls.rollout.plan_problems import describe_problem
from imgcls.serving.capacity import refuse_workers
from imgcls.yaml_once import load_yaml
from model.written import Written

Text = Annotated[str, Field(min_length=1, strict=True)]
Count = Annotated[int, Field(ge=1, le=1000, strict=True)]
Wish = Mapping[tuple[str, str], Stored]  # (model, version) -> its archive


class _Section(Written):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DesiredVersion(_Section):
    """One version."""

    version: Text
    archive: Path
    workers: Count = 1  # on each server
    weight: Annotated[Percent, Hundredths] | None = None  # percent of requests; unset: 0, of an only version 100
    min_ready: Count = 1  # fewer READY workers, on all servers together, and the gateway is not ready
    servers: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None  # which have it; unset: all
    autoscale: Autoscale | None = None  # workers follow the load between min and max, from `workers` on

    @model_validator(mode="after")
    def _check(self) -> Self:
        bounds = self.autoscale
        if bounds and "workers" in self.model_fields_set and not bounds.min <= self.workers <= bounds.max:
            expected = f"expected {bounds.min} to {bounds.max}, as in autoscale"
            raise ValueError(f"version {self.version} has workers {self.workers}; {expected}")
        return self


class DesiredModel(_Section):
    """One model."""

    name: Text
    default: Text | None = None  # the version that gRPC asks; unset: the one with the largest weight
    versions: Annotated[tuple[DesiredVersion, ...], Field(min_length=1)]

    @property
    def weights(self) -> dict[str, float]:
        """The share of each version."""
        unset = WHOLE if len(self.versions) == 1 else 0.0
        return {row.version: unset if row.weight is None else row.weight for row in self.versions}

    @property
    def default_version(self) -> str:
        """The version that gRPC asks."""
        weights = self.weights
        return self.default or max(weights, key=lambda version: weights[version])

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [row.version for row in self.versions]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name} has the versions {', '.join(names)}; expected each once")
        total = round(sum(self.weights.values()), 2)
        if total != WHOLE:
            raise ValueError(f"{self.name} has weights of {total:g} together; expected 100")
        if self.default_version not in names:
            raise ValueError(f"{self.name} has the default {self.default}; expected one of {', '.join(names)}")
        return self


class Desired(_Section):
    """The whole file; what is not in it shall not be."""

    models: Annotated[tuple[DesiredModel, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError(f"the models are {', '.join(names)}; expected each once")
        return self

    def check_servers(self, servers: tuple[str, ...], *, file: Path) -> None:
        """Checks what only the gateway's own settings can tell.

        Raises:
            UsageError: a server is not there, or a version could never have its workers or its min_ready.
        """
        used = {name for model in self.models for row in model.versions for name in row.servers or servers}
        if idle := [name for name in servers if name not in used]:
            raise UsageError(f"{file}: server {idle[0]} would have no version; expected at least one on each")
        for model in self.models:
            for row in model.versions:
                where = f"{file}: {model.name} {row.version}"
                unknown = [name for name in row.servers or () if name not in servers]
                if unknown:
                    raise UsageError(f"{where}: servers names {unknown[0]}; expected some of {', '.join(servers)}")
                if row.servers and len(set(row.servers)) != len(row.servers):
                    raise UsageError(f"{where}: servers names {', '.join(row.servers)}; expected each once")
                bounds = {"workers": row.workers, "autoscale.max": row.autoscale.max if row.autoscale else 0}
                for key, count in bounds.items():
                    refuse_workers(count, what=f"{where}: {key}")
                least = row.autoscale.min if row.autoscale else row.workers
                least *= len(row.servers or servers)
                if row.min_ready > least:
                    raise UsageError(f"{where}: min_ready is {row.min_ready}; expected at most its {least} workers")
                if model.weights[row.version] == 0 and row.version == model.default_version:
                    raise UsageError(f"{where}: it is the default and has no requests; name one that has")


def read_desired(path: Path) -> Desired:
    """Reads a file.

    Raises:
        UsageError: it cannot be read, or a key is unknown or wrong; one line that names it.
    """
    try:
        fields = load_yaml(path.read_bytes())
    except (OSError, yaml.YAMLError) as err:
        raise UsageError(f"{path}: cannot be read: {' '.join(str(err).split())}") from err
    try:
        desired = Desired.model_validate({} if fields is None else fields)
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        own = first["type"] == "value_error"
        words = first["msg"].removeprefix("Value error, ") if own else describe_problem(err, root=Desired, of="here")
        raise UsageError(f"{path}: {words}") from err
    return _resolve(desired, folder=path.absolute().parent)


def store_archives(desired: Desired, store: Store, *, trust: Path | None, copies: bool = True) -> Wish:
    """Verifies every archive, and copies it into the store.

    Args:
        desired: what names them.
        store: the gateway's.
        trust: the trust file that they are held to.
        copies: False: only looks.

    Raises:
        ArchiveError: an archive is not what the trust file demands, or is damaged.
        UsageError: an archive is of another model or version than the file says.
        GatewayError: there is no room in the store.
    """
    wish = {}
    for model in desired.models:
        for row in model.versions:
            stored = store.add(row.archive, trust=trust) if copies else store.check(row.archive, trust=trust)
            if (stored.name, stored.version) != (model.name, row.version):
                raise UsageError(
                    f"{row.archive} is {stored.name} {stored.version}; expected {model.name} {row.version}, as the "
                    "file says"
                )
            wish[model.name, row.version] = stored
    return wish


def to_table(desired: Desired, wish: Wish) -> Table:
    """Returns the table that a file describes."""
    models = []
    for model in desired.models:
        rows = [
            Version(
                version=row.version,
                archive=wish[model.name, row.version].file,
                tree_sha256=wish[model.name, row.version].tree_sha256,
                workers=row.workers,
                min_ready=row.min_ready,
                weight=model.weights[row.version],
                servers=row.servers,
                autoscale=row.autoscale,
            )
            for row in model.versions
        ]
        models.append(Model(name=model.name, default=model.default_version, versions=tuple(rows)))
    return Table(models=tuple(models))


def read_first_table(path: Path, settings: Settings) -> Callable[[Store, Path | None], Table]:
    """Returns what fills an empty table from a file, once there is a store and a trust file.

    Raises:
        UsageError: the file cannot be used.
    """
    desired = read_desired(path)
    desired.check_servers(tuple(server.name for server in settings.servers), file=path)
    return lambda store, trust: to_table(desired, store_archives(desired, store, trust=trust))


def write_desired(table: Table, store: Store) -> str:
    """Returns a table as such a file, with archives as they lie in the store."""
    models: list[dict[str, Any]] = []
    for model in table.models:
        rows = []
        for row in model.versions:
            fields: dict[str, Any] = {"version": row.version, "archive": str(store.path(row.archive))}
            fields |= {"workers": row.workers, "weight": row.weight, "min_ready": row.min_ready}
            if row.servers is not None:
                fields["servers"] = list(row.servers)
            if row.autoscale is not None:
                fields["autoscale"] = row.autoscale.model_dump()
            rows.append(fields)
        models.append({"name": model.name, "default": model.default, "versions": rows})
    return yaml.safe_dump({"models": models}, sort_keys=False, allow_unicode=True)


def _resolve(desired: Desired, *, folder: Path) -> Desired:
    models = [
        model.model_copy(
            update={
                "versions": tuple(row.model_copy(update={"archive": folder / row.archive}) for row in model.versions)
            }
        )
        for model in desired.models
    ]
    return desired.model_copy(update={"models": tuple(models)})
