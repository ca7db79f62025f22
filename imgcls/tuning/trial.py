"""One candidate, served and measured: a TorchServe of its own, warm, then load until its rate is known.

Whatever happens, a signal too, the server is stopped and its files are removed.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from imgcls.archive.contents import ArchiveContents
from imgcls.client.errors import BadImageError, BadRequestError
from imgcls.errors import ClientError
from imgcls.serving.access import inference_client, inference_token
from imgcls.serving.errors import NotReadyError
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import ServerState, StateFolder
from imgcls.tuning.candidates import Candidate
from imgcls.tuning.errors import CandidateError, LoadError
from imgcls.tuning.load import Stretch, Target, closed_loop, open_loop
from imgcls.tuning.repack import make_model_config, repack
from imgcls.tuning.search import find_rate
from imgcls.tuning.slo import Slo

MOST_CLOSED = 64  # connections of the closed loop


@dataclass(frozen=True)
class Effort:
    """How long and how closely one trial looks."""

    stretch_s: float  # of each stretch of load; warming up takes as long
    steps: int  # of the search


@dataclass(frozen=True)
class Subject:
    """What is tuned, and with what."""

    archive: Path  # verified
    tree_sha256: str  # the content that was
    contents: ArchiveContents
    config: Path  # the config.properties that every candidate is served with
    trust: Path  # the trust file for the repacked archives: they are as they were packed, and unsigned
    images: tuple[Path, ...]
    listing: Path  # a JSON file with their paths
    slo: Slo
    cores: int
    scratch: Path
    java: str | None = None
    timeout_s: float = 180.0


@dataclass(frozen=True)
class Trial:
    """What one server measured.

    Attributes:
        rate: images a second that met the SLO; 0: none did.
        missed: arrivals a second of the lowest stretch that missed it.
        best: the stretch at `rate`, or the nearest miss.
        saturation: the closed loop's stretch.
        memory_bytes: of the workers and the frontend, what they share counted once where the system tells.
        start_s: from the start of Java until the golden inputs were answered.
        wall_s: of the whole trial.
        stretches: all of the open loop.
    """

    rate: float
    missed: float | None
    best: Stretch
    saturation: Stretch
    memory_bytes: int
    start_s: float
    wall_s: float
    stretches: tuple[Stretch, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns it for machines."""
        return asdict(self)


def run_trial(subject: Subject, candidate: Candidate, *, effort: Effort, near: float | None = None) -> Trial:
    """Serves a candidate and measures it.

    Args:
        subject: what is tuned.
        candidate: its settings.
        effort: how long and how closely to look.
        near: images a second that an earlier trial found, to start the search at.

    Raises:
        CandidateError: it cannot be served on this machine.
        ArchiveError: the archive is another one by now.
        LoadError: k6 failed, or an image is refused.
        ServingError: no candidate can be served, such as for want of Java.
    """
    began_s = time.monotonic()
    with serve_candidate(subject, candidate) as (state, folder):
        start_s = time.monotonic() - began_s
        _check_images(subject, candidate, state, folder)
        token = inference_token(state, folder)
        url = f"{state.inference_url}/predictions/{state.model}"
        target = Target(url, token, subject.listing, subject.slo)
        connections = max(4, min(MOST_CLOSED, 2 * candidate.workers * candidate.batch_size))
        closed_loop(target, connections=connections, duration_s=effort.stretch_s)  # warm: not counted
        saturation = closed_loop(target, connections=connections, duration_s=effort.stretch_s)
        found = find_rate(
            lambda rate: open_loop(target, rate=rate, duration_s=effort.stretch_s),
            subject.slo,
            saturation=saturation.images_per_s,
            steps=effort.steps,
            near=near,
        )
        memory_bytes = measure_memory(state)
    return Trial(
        rate=found.rate,
        missed=found.missed,
        best=found.best,
        saturation=saturation,
        memory_bytes=memory_bytes,
        start_s=start_s,
        wall_s=time.monotonic() - began_s,
        stretches=found.stretches,
    )


@contextmanager
def serve_candidate(subject: Subject, candidate: Candidate) -> Iterator[tuple[ServerState, StateFolder]]:
    """Serves the archive with a candidate's settings, on free ports, until the block ends.

    Raises:
        CandidateError: it cannot be served on this machine.
        ServingError: no candidate can be.
    """
    place = Path(tempfile.mkdtemp(prefix="trial-", dir=subject.scratch))
    folder = StateFolder(place / "state")
    try:
        (place / "store").mkdir()
        model_config = make_model_config(subject.contents.model_config, candidate, cores=subject.cores)
        archive = repack(
            subject.archive,
            place / "store" / subject.archive.name,
            model_config=model_config,
            tree_sha256=subject.tree_sha256,
        )
        options = ServeOptions(
            archive=archive,
            config=subject.config,
            state=folder.path,
            port=0,
            java=subject.java,
            trust=subject.trust,
            timeout_s=subject.timeout_s,
            dies_with_parent=True,
        )
        try:
            yield start(options), folder
        except NotReadyError as err:
            reason = str(err).partition(f"; see {folder.logs}")[0]  # which are removed
            raise CandidateError(f"{candidate}: {reason}") from err
        finally:
            stop(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def measure_memory(state: ServerState) -> int:
    """Returns the bytes that a server's processes take: proportional set size where the system tells, else resident."""
    frontend = psutil.Process(state.pid)
    return sum(_measure_process(process) for process in (frontend, *frontend.children(recursive=True)))


def _measure_process(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    except psutil.NoSuchProcess:  # TorchServe starts one for a moment to measure the system
        return 0
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


def _check_images(subject: Subject, candidate: Candidate, state: ServerState, folder: StateFolder) -> None:
    """Sends each image once: one that is refused would count as a failure of the candidate."""
    with inference_client(state, folder) as client:
        for image in subject.images:
            try:
                client.predict(image.read_bytes())
            except (BadImageError, BadRequestError) as err:
                raise LoadError(f"{image}: the server refuses it: {err}; take it out of --images") from err
            except ClientError as err:  # no answer, or a worker that died: another candidate may do better
                raise CandidateError(f"{candidate}: {image} was not answered: {err}") from err


Runner = Callable[[Candidate, Effort, float | None], Trial]
