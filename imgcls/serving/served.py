"""Which archive a running server serves: asks a worker what it holds, and finds the file of that content.

The name of the file proves nothing: it may have been replaced since the workers loaded it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.archive.verify import read_integrity
from imgcls.errors import ArchiveError
from imgcls.serving.access import management_client
from imgcls.serving.errors import ManagementError
from imgcls.serving.management import Management
from imgcls.serving.state import ServerState, StateFolder

SHORT = 12  # digits of a hash in a message


@dataclass(frozen=True)
class ServedContent:
    """What a worker of one version says that it holds, and the archive in the model store that is the same."""

    model: str
    version: str
    tree_sha256: str
    engine: str | None
    device: str | None
    signer: str | None
    management_url: str
    archive: Path


def find_served(folder: StateFolder, *, name: str | None = None, version: str | None = None) -> ServedContent:
    """Finds the archive of a served version.

    Args:
        folder: of the server.
        name: the model; None is the one that the server was started with.
        version: its version; None is the default one.

    Raises:
        NotRunningError: there is no server in this state folder.
        ManagementError: no such model or version, or its workers do not tell what they hold.
        ArchiveError: no archive of the model store is what is being served.
    """
    state = folder.read_running()
    with management_client(state, folder) as management:
        status = management.describe(name or state.model, version=version)
        held = _ask_worker(management, status.model_name, status.model_version)
    tree_sha256 = held["tree_sha256"]
    return ServedContent(
        model=status.model_name,
        version=status.model_version,
        tree_sha256=tree_sha256,
        engine=held.get("engine"),
        device=held.get("device"),
        signer=held.get("signer"),
        management_url=management.url,
        archive=_find_archive(state, tree_sha256, model=f"{status.model_name} {status.model_version}"),
    )


def _ask_worker(management: Management, name: str, version: str) -> dict[str, Any]:
    """Asks a worker through TorchServe's describe call, which our handler answers."""
    held = management.ask_worker(name, version=version)
    try:
        held = json.loads(held) if isinstance(held, str) else held
        if not isinstance(held["tree_sha256"], str):
            raise TypeError("tree_sha256 is no text")
    except (LookupError, TypeError, ValueError, RecursionError) as err:
        raise ManagementError(
            f"{name} {version}: its workers do not tell which content they hold ({err!r}); either none is READY, which "
            "imgcls status shows, or the archive is not one of imgcls or an old one: build it again"
        ) from err
    return dict(held)


def _find_archive(state: ServerState, tree_sha256: str, *, model: str) -> Path:
    store = state.archive.parent
    others = []
    for mar in sorted(store.glob("*.mar"), key=lambda path: (path != state.archive, path)):  # the likeliest first
        found = _read_tree_sha256(mar)
        if found == tree_sha256:
            return mar
        others.append(f"{mar.name} is {found[:SHORT] if found else 'not readable'}")
    listed = ", ".join(others) or "it holds none"
    raise ArchiveError(
        f"{model}: its workers hold content {tree_sha256[:SHORT]}, which no archive in {store} is ({listed}): it was "
        "replaced or removed after it was loaded; look for it in a backup, or serve what is there with imgcls serve"
    )


def _read_tree_sha256(mar: Path) -> str | None:
    try:
        return read_integrity(mar).tree_sha256
    except ArchiveError:
        return None
