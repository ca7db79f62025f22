"""Runs modelaudit over one archive, as a process of its own: `python -P FILE`.

It imports modelaudit at once, which takes seconds, and waits for one JSON line on standard input: {"archive",
"largest_bytes": of an entry, "total_bytes"}. Prints one JSON line: its version, its issues, and why it saw not
everything. Imports nothing of imgcls. Whatever in modelaudit, or in what it imports, would open a connection or start a
program is refused by the interpreter.
"""

import json
import logging
import os
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

REFUSED = {
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn"),
}


def refuse(event: str, _arguments: tuple[object, ...]) -> None:
    """Is asked by the interpreter before each thing that it could report: sys.addaudithook."""
    if event in REFUSED:
        raise PermissionError(f"{event} is refused while an archive is scanned")


def scan(archive: Path, *, largest_bytes: int, total_bytes: int) -> dict[str, Any]:
    """Scans an archive with limits that take it whole; modelaudit's own leave out entries above 64 MiB."""
    from modelaudit.core import scan_model_directory_or_file  # here: what it imports must meet the refusal

    result = scan_model_directory_or_file(
        str(archive),
        timeout=3600,
        cache_enabled=False,
        use_hf_whitelist=False,  # a file's name or hash would make its findings milder
        max_file_read_size=max(largest_bytes, archive.stat().st_size),
        max_mar_member_bytes=largest_bytes,
        max_mar_uncompressed_bytes=total_bytes,
    )
    fields = json.loads(result.model_dump_json())
    names = {(check["message"], check["location"]): check["name"] for check in fields["checks"]}
    issues = [{"name": names.get((issue["message"], issue["location"])), **issue} for issue in fields["issues"]]
    gaps = {reason for data in fields["file_metadata"].values() for reason in data.get("scan_outcome_reasons") or ()}
    gaps |= {"errors"} if fields["has_errors"] else set()
    return {"version": version("modelaudit"), "issues": issues, "gaps": sorted(gaps)}


def warm_up(archive: Path) -> None:
    """Scans a file of each kind that an archive is made of: modelaudit imports what judges a kind when it meets one."""
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": "m", "handler": "handler.py"}}))
        for name in ("handler.py", "a.yaml", "a.json", "a.md"):
            file.writestr(name, "")
    scan(archive, largest_bytes=1 << 20, total_bytes=1 << 20)
    archive.unlink()


if __name__ == "__main__":
    logging.disable()
    sys.addaudithook(refuse)
    warm_up(Path.cwd() / "warm-up.mar")
    if question := sys.stdin.readline():
        fields = json.loads(question)
        print(json.dumps(scan(Path(fields.pop("archive")), **fields)), flush=True)
    os._exit(0)  # what modelaudit would tidy up lies in a folder that is removed, and takes it a second
