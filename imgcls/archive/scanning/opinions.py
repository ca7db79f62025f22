"""What modelaudit said of Python that it has judged before, kept in the user's cache folder.

Judging an archive's Python costs modelaudit ten seconds, all else next to nothing, and one build after the other packs
the same. Only builds ask here: whoever could write to the builder's cache could change what builds, but the scan of an
archive from elsewhere owes nothing to a cache.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import platformdirs

from imgcls.archive.scanning import findings, run_modelaudit, second_opinion
from imgcls.archive.scanning.findings import Finding, Severity
from imgcls.files import write_atomic

FOLDER = "modelaudit"


class Opinions:
    """The findings of Python files, by what the files hold.

    Args:
        folder: where they are kept; imgcls's folder in the user's cache unless told.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or platformdirs.user_cache_path("imgcls") / FOLDER

    def find(self, sources: str) -> tuple[Finding, ...] | None:
        """Returns what was said of these sources, None where they are new; a cache of somebody else is not asked."""
        try:
            path = self._path(sources)
            if path.stat().st_uid != os.geteuid():
                return None
            fields = json.loads(path.read_text(encoding="utf-8"))
            return tuple(Finding(**{**each, "severity": Severity(each["severity"])}) for each in fields)
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def keep(self, sources: str, said: Iterable[Finding]) -> None:
        """Remembers what was said of sources, where the folder can be written."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path(sources), json.dumps([asdict(finding) for finding in said], indent=1))

    def _path(self, sources: str) -> Path:
        """Returns the file for these sources, this modelaudit, and this way of asking and understanding it."""
        digest = hashlib.sha256(f"{version(second_opinion.NAME)} {sources}".encode())
        for module in (run_modelaudit, second_opinion, findings):
            digest.update(Path(str(module.__file__)).read_bytes())
        return self._folder / f"{digest.hexdigest()}.json"
