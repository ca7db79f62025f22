"""Measures one row of the table once: start, answers, memory, load."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from bench.bodies import read_best, write_bodies
from bench.environments import PeerError, find_python
from bench.load import Load, load_server
from bench.peers.settings import BATCH, DELAY_MS, WORKERS, Settings
from bench.registry import PEERS, Subject
from bench.running import ONE_THREAD, ROOT, Running, clean_environment, find_port, run_server
from bench.torchserve import BATCHES, build_noop, build_ours, build_stock, run_ours, run_torchserve, unpack
from imgcls.errors import ImgclsError
from model.errors import ModelError

WARM_UP_S = 8  # Java is still compiling what it runs
WARM_UP_CONNECTIONS = 16
COMPARED = 20  # images whose best class is compared


@dataclass(frozen=True)
class Plan:
    """What is sent: closed loops of connections, open loops of arrivals a second, each for a while."""

    connections: tuple[int, ...]
    rates: tuple[int, ...]
    duration_s: float


@dataclass
class Measured:
    """One row, once; where it could not be measured, `error` says why.

    `loads` goes by "closed 16" or "open 40"; `worker_mb` is of one of TorchServe's workers, `same_best` the share of
    images with our pipeline's best class.
    """

    subject: str
    number: int
    loads: dict[str, Load] = field(default_factory=dict)
    pss_mb: float | None = None
    worker_mb: float | None = None
    start_s: float | None = None
    same_best: float | None = None
    error: str | None = None


class Bench:
    """The network, the images, and what has been built of them so far."""

    def __init__(self, run: Path, images: list[Path], *, scratch: Path) -> None:
        self.run = run
        self.images = images
        self.scratch = scratch
        self.best: dict[str, list[str]] = {}  # of the first images, by engine: what our pipeline answers
        self._count = 0

    def measure(self, subject: Subject, plan: Plan, *, number: int) -> Measured:
        """Starts, measures and ends one server; where that fails, the result says why."""
        measured = Measured(subject.id, number)
        try:
            if subject.kind == "inprocess":
                self._measure_in_process(subject, plan, measured)
            else:
                with self._start(subject) as running:
                    self._measure_server(subject, running, plan, measured)
        except (PeerError, ImgclsError, ModelError, OSError, requests.RequestException, ValueError) as err:
            measured.error = " ".join(str(err).split()) or type(err).__name__
        return measured

    def _measure_server(self, subject: Subject, running: Running, plan: Plan, measured: Measured) -> None:
        measured.start_s = running.start_s
        if subject.runs != "noop":
            measured.same_best = self._compare(subject, running)
        bodies = write_bodies(self.images, running.framing, folder=self.scratch / "bodies")
        common = {"headers": running.headers, "bodies": bodies}
        load_server(running.url, **common, duration_s=WARM_UP_S, connections=WARM_UP_CONNECTIONS)  # type: ignore[arg-type]
        for connections in plan.connections:
            load = load_server(running.url, **common, duration_s=plan.duration_s, connections=connections)  # type: ignore[arg-type]
            measured.loads[f"closed {connections}"] = load
        measured.pss_mb, measured.worker_mb = running.measure_pss_mb(), running.measure_worker_mb()
        for rate in plan.rates:
            load = load_server(running.url, **common, duration_s=plan.duration_s, rate=rate)  # type: ignore[arg-type]
            measured.loads[f"open {rate}"] = load

    def _compare(self, subject: Subject, running: Running) -> float:
        """Returns the share of equal best classes; ours must all be equal."""
        answers = [read_best(running.ask(image.read_bytes())) for image in self.images[:COMPARED]]
        expected = self._expect(subject.engine or "eager")
        share = sum(map(str.__eq__, answers, expected)) / len(expected)
        if subject.runs == "ours" and share < 1:
            raise PeerError(
                f"answers otherwise than in process: the same best class for {share:.0%} of {len(expected)}"
            )
        return share

    def _expect(self, engine: str) -> list[str]:
        if engine not in self.best:
            self.best[engine] = self._run_in_process(engine, duration_s=0, batch=1, processes=1)[0]["best"]
        return self.best[engine][:COMPARED]

    def _measure_in_process(self, subject: Subject, plan: Plan, measured: Measured) -> None:
        """One process a core; with a single one, what a single connection is compared with."""
        for connections in plan.connections:
            processes = min(connections, WORKERS)
            started_s = time.time()
            children = self._run_in_process(
                subject.engine, duration_s=plan.duration_s, batch=subject.batch, processes=processes
            )
            self.best.setdefault(subject.engine, children[0]["best"])
            measured.loads[f"closed {connections}"] = Load(
                images_per_s=sum(child["images_per_s"] for child in children),
                p50_ms=sum(child["p50_ms"] for child in children) / processes,
                p99_ms=max(child["p99_ms"] for child in children),
            )
            measured.pss_mb = sum(child["pss_mb"] for child in children)
            measured.start_s = max(child["ready_s"] for child in children) - started_s

    def _run_in_process(self, engine: str, *, duration_s: float, batch: int, processes: int) -> list[dict]:  # type: ignore[type-arg]
        listing = write_bodies(self.images, "raw", folder=self.scratch / "bodies")
        settings = Settings(0, "ours", self._unpacked(engine), engine)
        environment = clean_environment() | ONE_THREAD | settings.as_environment()
        command = [sys.executable, "-m", "bench.inprocess", str(listing), str(duration_s), str(batch)]
        children = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        try:
            texts = [child.communicate(timeout=duration_s + 120)[0] for child in children]
        finally:
            for child in children:
                child.kill()
        if any(child.returncode for child in children):
            raise PeerError("the pipeline does not run in process; see above")
        return [json.loads(text) for text in texts]

    def _unpacked(self, engine: str) -> Path:
        return unpack(build_ours(self.run, self.scratch / "store", engine=engine))

    @contextmanager
    def _start(self, subject: Subject) -> Iterator[Running]:
        self._count += 1
        folder, store, image = self.scratch / str(self._count), self.scratch / "store", self.images[0].read_bytes()
        if subject.kind == "ours":
            with run_ours(build_ours(self.run, store, engine=subject.engine), folder=folder, image=image) as running:
                yield running
        elif subject.kind in ("stock", "noop", "plain"):
            with run_torchserve(
                self._build(subject, store=store),
                tuned_config=subject.kind != "stock" and subject.tuned,
                one_thread=subject.tuned,
                folder=folder,
                image=image,
            ) as running:
                yield running
        else:
            with self._start_peer(subject, folder=folder, image=image) as running:
                yield running

    def _build(self, subject: Subject, *, store: Path) -> Path:
        if subject.kind == "plain":
            return build_ours(self.run, store, engine=subject.engine)
        if subject.kind == "noop":
            config = BATCHES.format(workers=WORKERS, batch_size=BATCH, delay_ms=DELAY_MS)
            return build_noop(store, config=config if subject.tuned else "")
        return build_stock(self.run, store)

    @contextmanager
    def _start_peer(self, subject: Subject, *, folder: Path, image: bytes) -> Iterator[Running]:
        peer, port = PEERS[subject.peer], find_port()
        path, framing = peer.docs if peer.docs and subject.runs == "docs" else (peer.path, peer.framing)
        engine = subject.engine or "eager"
        settings = Settings(port, subject.runs, self._unpacked(engine), engine)
        environment: Mapping[str, str] = {**ONE_THREAD, **settings.as_environment(), "PYTHONPATH": str(ROOT)}
        with run_server(
            peer.command(find_python(subject.peer), port),
            url=f"http://127.0.0.1:{port}{path}",
            framing=framing,
            environment=environment,
            folder=folder,
            image=image,
        ) as running:
            yield running
