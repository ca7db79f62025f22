"""Which settings are worth a measurement on this machine, the most promising first.

A full grid of engines, workers, threads and batches would take an hour. So each setting is first varied alone, from
what the archive has now; what won is then combined; the rest of the grid comes last, as far as the budget goes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from imgcls.tuning.slo import Slo
from model.engines.kinds import AUTO, KINDS, REFERENCE
from model.engines.records import EngineRecord

# TorchServe's own worker imports torch, and the frontend is a Java process (docs/performance.md): a coarse estimate, to
# leave out what cannot fit; what a candidate really takes is measured.
WORKER_BYTES = 500_000_000
FRONTEND_BYTES = 400_000_000
BATCHES = ((8, 1), (1, 1), (4, 1), (16, 5), (32, 10))  # most requests in a batch, milliseconds to wait for them
WAIT_SHARE = 0.25  # of the limit, that a lone request may be kept waiting for company


@dataclass(frozen=True)
class Candidate:
    """One way to serve an archive; `threads` is of one worker."""

    engine: str
    workers: int
    threads: int
    batch_size: int
    max_batch_delay_ms: int

    def __str__(self) -> str:
        """Returns it for people."""
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''} x {self.threads} "
        threads = f"thread{'s' if self.threads > 1 else ''}"
        batch = f"batch {self.batch_size}" + (f" within {self.max_batch_delay_ms} ms" if self.batch_size > 1 else "")
        return f"{self.engine}, {workers}{threads}, {batch}"

    def as_dict(self) -> dict[str, Any]:
        """Returns it for machines."""
        return asdict(self)


@dataclass(frozen=True)
class Space:
    """What each setting may be; the first of each is the starting point."""

    engines: tuple[str, ...]
    placements: tuple[tuple[int, int], ...]  # workers, threads of each
    batches: tuple[tuple[int, int], ...]  # size, delay in ms
    left_out: tuple[str, ...] = ()  # what was not taken, and why

    @property
    def start(self) -> Candidate:
        """What all others are compared with."""
        return self.make(self.engines[0], self.placements[0], self.batches[0])

    def make(self, engine: str, placement: tuple[int, int], batch: tuple[int, int]) -> Candidate:
        """Returns one candidate."""
        return Candidate(engine, *placement, *batch)

    def star(self) -> list[Candidate]:
        """Returns the start, and it with one setting changed: first the engine, then the workers, then the batch."""
        found = [self.start]
        found += [replace(self.start, engine=engine) for engine in self.engines[1:]]
        found += [replace(self.start, workers=workers, threads=threads) for workers, threads in self.placements[1:]]
        found += [replace(self.start, batch_size=size, max_batch_delay_ms=delay) for size, delay in self.batches[1:]]
        return found

    def grid(self) -> list[Candidate]:
        """Returns all candidates."""
        return [self.make(*each) for each in product(self.engines, self.placements, self.batches)]


def make_space(
    model_config: Mapping[str, Any],
    records: Iterable[EngineRecord],
    *,
    slo: Slo,
    cores: int,
    available_bytes: int,
    gpus: int = 0,
    only_engines: Sequence[str] = (),
    weights_bytes: int = 0,
) -> Space:
    """Returns what is worth a measurement.

    Args:
        model_config: the archive's model-config.yaml.
        records: its engines.
        slo: a delay that would eat up the limit is left out.
        cores: that may be used.
        available_bytes: of memory.
        gpus: that TorchServe would give the workers; 0: they run on the CPU.
        only_engines: names; empty: all that the archive accepted for the device.
        weights_bytes: of the archive's weights, which each worker holds once.
    """
    left_out: list[str] = []
    engines = list_engines(records, device="cuda" if gpus else "cpu", only=only_engines)
    now = (model_config.get("handler") or {}).get("engine", AUTO)
    engines.sort(key=lambda name: name != now)  # stable: what is named now, else what `auto` would take first
    most = max(1, (available_bytes - FRONTEND_BYTES) // (WORKER_BYTES + weights_bytes))
    placements = _list_placements(cores, gpus=gpus)
    if fitting := [placement for placement in placements if placement[0] <= most]:
        if len(fitting) < len(placements):
            left_out.append(f"more than {most} workers, for want of memory ({available_bytes / 1e9:.1f} GB are free)")
        placements = fitting
    batches = [batch for batch in BATCHES if batch[0] == 1 or batch[1] <= max(1.0, slo.limit_ms * WAIT_SHARE)]
    if len(batches) < len(BATCHES):
        left_out.append(f"batches that wait longer than a quarter of {slo.limit_ms:g} ms")
    return Space(
        engines=tuple(engines),
        placements=tuple(_now_first(placements, _placement_of(model_config, cores=cores, gpus=gpus))),
        batches=tuple(_now_first(batches, _batch_of(model_config))),
        left_out=tuple(left_out),
    )


def combine(scores: Mapping[Candidate, float], space: Space) -> Candidate:
    """Returns the candidate made of the best engine, the best workers and the best batch of a measured star.

    Args:
        scores: by candidate, the higher the better; the star's.
        space: that the star belongs to.
    """
    start = space.start

    def best(key: str) -> Candidate:
        others = {name: value for name, value in start.as_dict().items() if name not in key.split()}
        alone = [each for each in scores if others.items() <= each.as_dict().items()]
        return max(alone, key=lambda each: scores[each], default=start)

    workers, batch = best("workers threads"), best("batch_size max_batch_delay_ms")
    return Candidate(
        best("engine").engine, workers.workers, workers.threads, batch.batch_size, batch.max_batch_delay_ms
    )


def list_engines(records: Iterable[EngineRecord], *, device: str, only: Sequence[str] = ()) -> list[str]:
    """Returns the accepted engines that run on a device, in the order in which `auto` would take them."""
    accepted = [record for record in records if record.is_accepted]
    packed = {record.engine for record in accepted if record.engine == REFERENCE or record.device == device}
    wanted = set(only) or packed
    return [kind.name for kind in KINDS.values() if kind.name in packed & wanted and device in kind.devices]


def _list_placements(cores: int, *, gpus: int) -> list[tuple[int, int]]:
    """One worker a core first; then fewer with more threads; then one core left to the frontend and its JSON."""
    if gpus:
        return [(gpus * times, max(1, cores // (gpus * times))) for times in (1, 2, 4)]
    counts = [cores, *(count for count in (cores // 2, cores // 4, 1) if count >= 1)]
    placements = [(count, max(1, cores // count)) for count in counts]
    if cores > 1:
        placements.append((cores - 1, 1))
    return list(dict.fromkeys(placements))


def _placement_of(model_config: Mapping[str, Any], *, cores: int, gpus: int) -> tuple[int, int]:
    """Returns the archive's own workers and threads, as the handler would count them."""
    workers = int(model_config.get("minWorkers") or gpus or cores)
    threads = (model_config.get("handler") or {}).get("threads", AUTO)
    return workers, max(1, cores // workers) if threads == AUTO else int(threads)


def _batch_of(model_config: Mapping[str, Any]) -> tuple[int, int]:
    size = int(model_config.get("batchSize", 1))
    return size, int(model_config.get("maxBatchDelay", 100)) if size > 1 else 1


def _now_first(values: Sequence[tuple[int, int]], now: tuple[int, int]) -> list[tuple[int, int]]:
    return [now, *(value for value in values if value != now)]
