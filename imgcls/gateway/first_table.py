"""The first table of a gateway: from the archive that it is started with, or from a wish in a file.

A table that is there from before holds: it says what was rolled since.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from imgcls.archive.contents import read_contents
from imgcls.gateway.folder import GatewayFolder
from imgcls.gateway.store import Store, Stored
from imgcls.gateway.table import Model, Table, Version
from imgcls.serving.config import read_config
from imgcls.serving.server import ServeOptions
from model.cores import count_cores

log = logging.getLogger(__name__)

Wish = Callable[[Store, Path | None], Table]


def fill_from_wish(folder: GatewayFolder, wish: Wish, *, trust: Path | None) -> None:
    """Fills an empty table from a wish.

    Raises:
        ArchiveError: an archive that it names cannot be served, or is not what the trust file demands.
        UsageError: the wish or the trust file cannot be used.
    """
    if folder.table.read().models:
        log.info("the table of before holds; imgcls apply brings it to the wish")
        return
    wanted = wish(folder.store, trust)
    folder.table.change(lambda table: table.model_copy(update={"models": wanted.models}))


def fill_from_archive(folder: GatewayFolder, options: ServeOptions, *, trust: Path | None) -> None:
    """Adds an archive's model to the table, with all requests, unless the table knows the model.

    Raises:
        ArchiveError: the archive cannot be served, or is not what the trust file demands.
        UsageError: the trust file cannot be used.
    """
    stored = folder.store.add(options.archive, trust=trust)
    known = folder.table.read().find(stored.name)
    if known is not None:
        _tell_difference(folder, known, stored)
        return
    row = Version(
        version=stored.version,
        archive=stored.file,
        tree_sha256=stored.tree_sha256,
        workers=options.workers or _default_workers(options),
        weight=100,
    )
    model = Model(name=stored.name, default=stored.version, versions=(row,))
    folder.table.change(lambda table: table.with_model(model))


def _tell_difference(folder: GatewayFolder, known: Model, stored: Stored) -> None:
    row = known.find(stored.version)
    if row is None or row.tree_sha256 != stored.tree_sha256 or row.weight == 0:
        log.warning(
            "the table of before holds: %s is served, not %s %s; roll it with imgcls rollout start, or begin anew by "
            "removing %s",
            ", ".join(f"{row.version} ({row.weight:g} %)" for row in known.versions if row.weight),
            stored.version,
            stored.tree_sha256[:12],
            folder.table.path,
        )


def _default_workers(options: ServeOptions) -> int:
    """Returns how many workers TorchServe would start: the archive's minWorkers, the configuration's, or one a core."""
    wanted = read_contents(options.archive).model_config.get("minWorkers")
    configured = read_config(options.config).get("default_workers_per_model", "")
    return int(wanted or (configured if configured.isdigit() else 0) or count_cores())
