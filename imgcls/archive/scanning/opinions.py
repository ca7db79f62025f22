"""What modelaudit said of Python that it has judged before: ours in a file beside this one, all in the user's cache.

Judging an archive's Python costs modelaudit ten seconds to a minute, all else next to nothing, and one build after the
other packs the same, or the same but for a file. Only builds ask here: whoever could write to the builder's cache, or
to imgcls itself, could change what builds, but the scan of an archive from elsewhere owes nothing to either.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs

from imgcls.archive.scanning import findings, run_modelaudit, second_opinion
from imgcls.archive.scanning.findings import Finding, Severity
from imgcls.files import write_atomic

FOLDER = "modelaudit"
SHIPPED = Path(__file__).with_name("shipped_opinions.json")  # imgcls.archive.ship_opinions writes it


class Opinions:
    """The findings of each Python file, by a hash of what decides them.

    Args:
        folder: where they are kept; imgcls's folder in the user's cache unless told.
        shipped: the file of those that come with imgcls; None to ask none of them.
    """

    def __init__(self, folder: Path | None = None, *, shipped: Path | None = SHIPPED) -> None:
        self._folder = folder or platformdirs.user_cache_path("imgcls") / FOLDER
        self._shipped_file = shipped

    def find(self, source: str) -> tuple[Finding, ...] | None:
        """Returns what was said of a file, None where it is new; a cache of somebody else is not asked."""
        try:
            fields = self._shipped.get(self._key(source))
            if fields is None:
                path = self._path(source)
                if path.stat().st_uid != os.geteuid():
                    return None
                fields = json.loads(path.read_text(encoding="utf-8"))
            return tuple(Finding(**{**each, "severity": Severity(each["severity"])}) for each in fields)
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def keep(self, source: str, said: Iterable[Finding]) -> None:
        """Remembers what was said of a file, where the folder can be written."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path(source), json.dumps([asdict(finding) for finding in said], indent=1))

    def list_kept(self) -> dict[str, list[dict[str, Any]]]:
        """Returns all that the folder holds, as `shipped` has it."""
        return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(self._folder.glob("*.json"))}

    def _key(self, source: str) -> str:
        return hashlib.sha256(f"{self._judge} {source}".encode()).hexdigest()

    def _path(self, source: str) -> Path:
        """Returns where the opinion of a file is kept."""
        return self._folder / f"{self._key(source)}.json"

    @cached_property
    def _shipped(self) -> dict[str, list[dict[str, Any]]]:
        if self._shipped_file is None:
            return {}
        opinions: dict[str, list[dict[str, Any]]] = json.loads(self._shipped_file.read_text(encoding="utf-8"))
        return opinions

    @cached_property
    def _judge(self) -> str:
        """This modelaudit, and this way of asking and understanding it."""
        digest = hashlib.sha256(version(second_opinion.NAME).encode())
        for module in (run_modelaudit, second_opinion, findings):
            digest.update(Path(str(module.__file__)).read_bytes())
        return digest.hexdigest()
