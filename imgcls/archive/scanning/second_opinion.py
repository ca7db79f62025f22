"""Asks modelaudit for its opinion of an archive, in a process of its own, and translates what it says into findings.

modelaudit reports home unless told otherwise, keeps files in the user's home, and takes settings from files beside what
it scans. Here it gets an empty home and working folder, its switches against telemetry, and `run_modelaudit` around it.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from handler.packed import UNREADABLE_ZIP
from imgcls.archive.contents import MANIFEST, read_small
from imgcls.archive.scanning import run_modelaudit
from imgcls.archive.scanning.findings import Finding, Scanner, Severity
from imgcls.errors import ArchiveError
from imgcls.scratch import ScratchFolder

if TYPE_CHECKING:
    from imgcls.archive.scanning.opinions import Opinions

NAME = "modelaudit"
KEPT_VARIABLES = ("PATH", "SYSTEMROOT", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
SWITCHES = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "NO_ANALYTICS": "1", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
TIMEOUT_S = 3600
SPARED_BYTES = 64 << 20  # modelaudit's own limit of an entry; tensors above it are left to our own check
_SEVERITIES = {"critical": Severity.CRITICAL, "warning": Severity.WARNING}


def is_installed() -> bool:
    """Tells whether modelaudit can be asked."""
    return importlib.util.find_spec(NAME) is not None


@dataclass(frozen=True)
class Known:
    """What our own reading found out, which modelaudit need not find, or gets wrong."""

    sizes: Mapping[str, int]  # bytes of each file as they were counted, not as the zip says
    plain_tensors: Collection[str]  # files that are safetensors to the last byte
    sources: Collection[str]  # files that are Python and no pickle
    judged: Collection[str] = ()  # of these, what modelaudit has judged before

    @property
    def large_tensors(self) -> list[str]:
        """Which modelaudit would read and hash three times over."""
        return sorted(path for path in self.plain_tensors if self.sizes[path] > SPARED_BYTES)

    @property
    def spared(self) -> list[str]:
        """What modelaudit does not get."""
        return sorted({*self.large_tensors, *self.judged})


class ModelauditProcess:
    """A modelaudit that imports itself from the moment of entry on, and waits for its archive."""

    def __enter__(self) -> Self:
        """Starts it."""
        self._scratch = ScratchFolder("scan")
        self.folder = Path(self._scratch.name)
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        places = dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME"), str(self.folder))
        self._process = subprocess.Popen(
            [sys.executable, "-P", run_modelaudit.__file__],
            cwd=self.folder,
            env=environment | places | SWITCHES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it, and removes all that it has written."""
        self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()

    def run(self, archive: Path, *, largest_bytes: int, total_bytes: int) -> dict[str, Any]:
        """Returns what it says of an archive.

        Raises:
            ArchiveError: it fails, or says nothing in time.
        """
        question = json.dumps({"archive": str(archive), "largest_bytes": largest_bytes, "total_bytes": total_bytes})
        try:
            output, errors = self._process.communicate(f"{question}\n", timeout=TIMEOUT_S)
            answer: dict[str, Any] = json.loads(output.splitlines()[-1])
        except subprocess.TimeoutExpired as err:
            raise ArchiveError(f"no answer within {TIMEOUT_S} s") from err
        except (ValueError, IndexError) as err:
            status = f"exit status {self._process.returncode}"
            raise ArchiveError([status, *errors.strip().splitlines()][-1][:200]) from err
        return answer


def ask_modelaudit(
    archive: Path, known: Known, *, process: ModelauditProcess | None = None, opinions: "Opinions | None" = None
) -> tuple[Scanner, tuple[Finding, ...]]:
    """Runs modelaudit; where it fails, that is a finding too.

    Args:
        archive: the archive.
        known: what our own reading found out.
        process: one that was started beforehand.
        opinions: what was said of Python before; all of it is judged anew where this is None.
    """
    sources = _hash_sources(archive, known) if opinions else {}
    earlier = {path: opinions.find(digest) for path, digest in sources.items()} if opinions else {}
    said = {path: findings for path, findings in earlier.items() if findings is not None}
    known = replace(known, judged=said)
    with nullcontext(process) if process else ModelauditProcess() as auditor:
        given = _without_spared(archive, known, auditor.folder) if known.spared else archive.resolve()
        try:
            answer = auditor.run(
                given,
                largest_bytes=max(known.sizes.values(), default=0) + SPARED_BYTES,
                total_bytes=sum(known.sizes.values()) + SPARED_BYTES,
            )
        except ArchiveError as err:
            return _report_failure(str(err))
    notes = [f"without {', '.join(known.large_tensors)}: tensors only, by our own check"] if known.large_tensors else []
    notes += [f"{len(said)} of {len(sources)} Python files were judged before"] if said else []
    findings = tuple(translate(answer, archive=given, known=known))
    # What cannot be told of one file, or of none that is there, must be said again at the next build.
    if opinions and not answer["gaps"] and all(finding.path in known.sizes for finding in findings):
        for path in sources.keys() - said.keys():
            opinions.keep(sources[path], [finding for finding in findings if finding.path == path])
    return Scanner(NAME, answer["version"], "ran", "; ".join(notes)), (*findings, *chain.from_iterable(said.values()))


def _hash_sources(archive: Path, known: Known) -> dict[str, str]:
    """Returns a hash of each Python file of an archive, by path; of none where the archive cannot be read.

    modelaudit judges each file for itself. Beside its content the path counts, as an `__init__.py` is judged in other
    words, what the manifest names, as the handler is judged more sternly, and the Python whose parser it is.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            model = json.loads(read_small(file, MANIFEST))["model"]
            common = [model["handler"], model.get("extraFiles"), sys.version_info[:2]]
            contents = {path: hashlib.sha256(read_small(file, path)).hexdigest() for path in sorted(known.sources)}
    except (*UNREADABLE_ZIP, ArchiveError, TypeError):
        return {}
    return {
        path: hashlib.sha256(f"{common!r} {path!r} {content}".encode()).hexdigest()
        for path, content in contents.items()
    }


def _report_failure(reason: str) -> tuple[Scanner, tuple[Finding, ...]]:
    finding = Finding(f"{NAME}/failed", Severity.WARNING, "", f"modelaudit gave no answer: {reason}")
    return Scanner(NAME, "", "failed", reason), (finding,)


def _without_spared(archive: Path, known: Known, folder: Path) -> Path:
    """Copies an archive into a folder without its large tensors; returns the archive itself where that fails."""
    copy = folder / archive.name
    try:
        with zipfile.ZipFile(archive) as source, zipfile.ZipFile(copy, "w") as target:
            for info in source.infolist():
                if info.file_size > known.sizes.get(info.filename, 0):  # zipfile reads no more than this
                    raise ValueError("the directory promises more than our own reading saw")
                if info.filename not in known.spared:
                    entry = zipfile.ZipInfo(info.filename)
                    entry.external_attr, entry.file_size = info.external_attr, info.file_size
                    with source.open(info) as content, target.open(entry, "w") as written:
                        shutil.copyfileobj(content, written)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError):
        return archive.resolve()  # our own findings say what is wrong with it; let modelaudit say it too
    return copy


def translate(answer: Mapping[str, Any], *, archive: Path, known: Known) -> Iterator[Finding]:
    """Yields a finding for each issue, but for those that `is_noise` explains."""
    issues = answer["issues"]
    misread = {_entry(issue) for issue in issues if "pickle_source" in _details(issue)} & set(known.sources)
    gaps = sorted(set(answer["gaps"]) - _GAPS_OF_STATISTICS - (_GAPS_OF_MISREAD if misread else set()))
    for issue in issues:
        if is_noise(issue, spared=known.spared, misread=misread):
            continue
        name = str(issue.get("rule_code") or str(issue.get("name") or issue.get("type")).lower())
        severity = _SEVERITIES.get(str(issue.get("severity")), Severity.INFO)
        yield Finding(
            f"{NAME}/{re.sub(r'[^A-Za-z0-9_]+', '-', name).strip('-')}",
            severity,
            _path(str(issue.get("location") or ""), archive=archive),
            _TEMPORARY.sub("", str(issue["message"])),
        )
    if gaps:
        message = f"modelaudit did not see everything: {', '.join(gaps)}"
        yield Finding(f"{NAME}/incomplete", Severity.WARNING, "", message)


def is_noise(issue: Mapping[str, Any], *, spared: Collection[str], misread: Collection[str]) -> bool:
    """Tells whether an issue says nothing about the archive; each case with its reason."""
    name, details = issue.get("name"), _details(issue)
    if name == "MAR Non-Handler Python Analysis":
        # Any module runs code when it is imported: a constant made by a call does. With a risky call it stays.
        return bool(details.get("has_import_time_execution")) and not details.get("risky_calls")
    if name == "TorchServe Manifest Reference Integrity":
        # It looks for the handler as a file and misses `package.module`; our foreign-handler does not.
        # Nor does it see the tensors that it was spared.
        missing = details.get("missing_references") or [{}]
        return all(item.get("field") == "handler" or item.get("value") in spared for item in missing)
    # Two lines of `import …` are a pickle's INST opcode to it, and the rest "embedded code". What it says about Python
    # as Python, under other names, stays; and our own rules judge each of these files as what it is.
    return _entry(issue) in misread and name not in _PYTHON_CHECKS


# Why modelaudit says that it did not see everything, where that is its mistake.
# Whether the weights of an ONNX file are spread as usual is a statistic, not a search for code; modelaudit's own core
# lets a scan count as complete without it.
_GAPS_OF_STATISTICS = {"onnx_weight_distribution_analysis_incomplete"}
_GAPS_OF_MISREAD = {"pickle_analysis_incomplete"}
_PYTHON_CHECKS = ("TorchServe Handler Static Analysis", "MAR Non-Handler Python Analysis")
_TEMPORARY = re.compile(r"\S*imgcls-scan-[^/\s]+/tmp\w{8}_?")


def _details(issue: Mapping[str, Any]) -> Mapping[str, Any]:
    return issue.get("details") or {}


def _entry(issue: Mapping[str, Any]) -> str:
    details = _details(issue)
    return str(details.get("mar_entry") or details.get("entry") or details.get("member") or "")


def _path(location: str, *, archive: Path) -> str:
    """Returns the entry of a location such as `/store/a.mar:outer.zip:inner (pos 3)`, as our own findings name it."""
    inside = location.removeprefix(str(archive)).lstrip(":")
    return re.sub(r" (\(pos \d+\)|-> .*)$", "", inside).replace(":", "!")
