"""Runs modelaudit over one archive, as a process of its own: `python -P FILE ARCHIVE MOST_BYTES_OF_AN_ENTRY TOTAL`.

Prints one JSON line: its version, its issues, and why it saw not everything. Imports nothing of imgcls. Whatever in
modelaudit, or in what it imports, would open a connection or start a program is refused by the interpreter.
"""

import json
import logging
import sys
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
    from modelaudit.core import scan_model_directory_or_file

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


if __name__ == "__main__":
    logging.disable()
    sys.addaudithook(refuse)
    print(json.dumps(scan(Path(sys.argv[1]), largest_bytes=int(sys.argv[2]), total_bytes=int(sys.argv[3]))))
