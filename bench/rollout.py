"""`python -m bench rollout`: rollouts in a row, there and back, under a constant load; what clients saw of them.

Every answer has to be from a version that the rollout allowed at that time, by the audit log. Beside it, what the
gateway adds to a request: the same load past it and through it, in turns.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from bench import describe_machine
from bench.open_loop import Answer, Load, open_loop
from bench.tiny import make_tiny_run
from imgcls.archive.build import build_archive
from imgcls.archive.stage import ServingOptions
from imgcls.gateway.folder import GatewayFolder
from imgcls.gateway.gateway import Gateway
from imgcls.serving.access import inference_token

PLAN = """
keep_warm_s = 2.0
[shadow]
percent = 20.0
hold_s = 3.0
min_samples = 20
[canary]
steps = [{weight = 20.0, hold_s = 3.0}, {weight = 50.0, hold_s = 3.0}]
[analysis]
interval_s = 1.0
max_wait_s = 30.0
on_inconclusive = "abort"
[analysis.metrics]
p99_ms = false
[analysis.metrics.error_rate]
max = 0.05
max_increase = 0.05
"""


@dataclass(frozen=True)
class Span:
    """One rollout by its audit log: from when the new version could get requests, until when the old one could."""

    stable: str
    candidate: str
    from_s: float
    until_s: float


def rollout(
    *,
    rollouts: Annotated[int, typer.Option(min=1, help="In a row; every second one goes back.")] = 20,
    rate: Annotated[int, typer.Option(min=1, help="Requests a second, whatever the server does.")] = 100,
    requests: Annotated[int, typer.Option(min=1, help="At least so many in all.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=0, help="Of the load past the gateway and through it.")] = 5,
) -> None:
    """Rolls two versions in turns under load, and prints a table in Markdown; exits 1 if a request failed."""
    with tempfile.TemporaryDirectory(prefix="imgcls-bench-") as temporary:
        folder = Path(temporary)
        archives = build_versions(folder)
        image = folder / "image.png"
        Image.effect_noise((8, 8), 60).save(image)
        with _served(archives["1.0"], folder / "state") as gateway:
            overhead = _measure_overhead(gateway, image, folder, rate=rate, rounds=rounds)
            plan = folder / "plan.toml"
            plan.write_text(PLAN, encoding="utf-8")
            with open_loop(_public_url(gateway), image, folder, rate=rate) as load:
                began_s = time.monotonic()
                took_s = roll(gateway, archives, plan, count=rollouts)
                time.sleep(max(0.0, requests / rate - (time.monotonic() - began_s)))
            spans = read_spans(gateway)
    forbidden = find_forbidden(load.answers, spans, first="1.0")
    print(f"{rollouts} rollouts at {rate} requests a second; {describe_machine()}\n")
    print(_table(load, took_s, forbidden) + overhead)
    if load.failed or forbidden or load.dropped:
        sys.exit(1)


def build_versions(folder: Path) -> dict[str, Path]:
    """Builds two archives of the same weights, 1.0 and 2.0."""
    run = make_tiny_run(folder / "run")
    archives = {}
    for version in ("1.0", "2.0"):
        store = folder / version
        store.mkdir()
        archives[version] = build_archive(run, store, version=version, options=ServingOptions(workers=1))
    return archives


def roll(gateway: Gateway, archives: dict[str, Path], plan: Path, *, count: int) -> list[float]:
    """Rolls there and back `count` times, back by another rollout and by `undo` in turns; returns what each took.

    Raises:
        RuntimeError: one was not promoted.
    """
    took_s = []
    for number in range(count):
        is_back = number % 2 == 1
        if number % 4 == 3:
            arguments = ["undo"]
        else:
            arguments = ["start", str(archives["1.0" if is_back else "2.0"]), "--plan", str(plan)]
        began_s = time.monotonic()
        result = _imgcls("rollout", *arguments, "--json", "--state", str(gateway.folder.state))
        took_s.append(time.monotonic() - began_s)
        if result.returncode != 0:
            raise RuntimeError(f"rollout {number + 1} was not promoted: {result.stderr[-800:]} {result.stdout[-2000:]}")
    return took_s


def read_spans(gateway: Gateway) -> list[Span]:
    """Returns the rollouts of the audit log, oldest first."""
    entries: dict[str, list[dict[str, Any]]] = {}
    for line in (gateway.folder.rollout / "audit.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        entries.setdefault(entry["rollout"], []).append(entry)
    spans = []
    for own in entries.values():
        first = next(e for e in own if e["event"] == "step begins" and e["step"].startswith(("canary", "promote")))
        last = next(e for e in own if e["event"] == "promoted")
        spans.append(Span(first["stable"], first["candidate"], first["time_s"], last["time_s"]))
    return spans


def find_forbidden(answers: Sequence[Answer], spans: Sequence[Span], *, first: str) -> list[Answer]:
    """Returns the answers of a version that could not have made them: not yet, or not any more."""
    return [
        answer
        for answer in answers
        if answer.status == 200 and answer.version not in _allowed(answer, spans, first=first)
    ]


def _allowed(answer: Answer, spans: Sequence[Span], *, first: str) -> set[str]:
    """Returns the versions that a request may have met between its start and its end."""
    allowed, now = set(), first
    begins_s, ends_s = answer.started_s, answer.ended_s
    since_s = 0.0
    for span in spans:
        if since_s <= ends_s and begins_s <= span.until_s:
            allowed.add(now)
        if span.from_s <= ends_s and begins_s <= span.until_s:
            allowed.add(span.candidate)
        now, since_s = span.candidate, span.until_s
    return allowed | ({now} if ends_s >= since_s else set())


def _measure_overhead(gateway: Gateway, image: Path, folder: Path, *, rate: int, rounds: int) -> str:
    state = gateway.members[0].running()
    direct = f"{state.inference_url}/predictions/imgcls"
    token = inference_token(state, gateway.members[0].folder) or ""
    found: dict[str, list[Load]] = {"past the gateway": [], "through it": []}
    for _ in range(rounds):
        for name, url, bearer in (("past the gateway", direct, token), ("through it", _public_url(gateway), "")):
            with open_loop(url, image, folder, rate=rate, bearer=bearer) as load:
                time.sleep(10)
            found[name].append(load)
    if not rounds:
        return ""
    lines = ["", "| the same load, one version | p50 ms | p99 ms |", "|---|---|---|"]
    for name, loads in found.items():
        p50, p99 = (statistics.median(load.quantile_ms(q) for load in loads) for q in (0.5, 0.99))
        lines.append(f"| {name} | {p50:.2f} | {p99:.2f} |")
    return "\n".join(lines) + "\n"


def _table(load: Load, took_s: Sequence[float], forbidden: Sequence[Answer]) -> str:
    rows = {
        "requests": f"{len(load.answers):,}",
        "failed": f"{len(load.failed)} {load.statuses() if load.failed else ''}".strip(),
        "without a connection": str(load.dropped),
        "of a version that was not allowed": str(len(forbidden)),
        "answered by": ", ".join(f"{version} {count:,}" for version, count in sorted(load.versions().items())),
        "p50, p99 ms": f"{load.quantile_ms(0.5):.1f}, {load.quantile_ms(0.99):.1f}",
        "a rollout took, median and longest": f"{statistics.median(took_s):.0f} s, {max(took_s):.0f} s",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


@contextlib.contextmanager
def _served(archive: Path, state: Path) -> Iterator[Gateway]:
    result = _imgcls("serve", str(archive), "--gateway", "--gateway-port", "0", "--port", "0", "--state", str(state))
    try:
        if result.returncode != 0:
            raise RuntimeError(result.stderr)
        folder = GatewayFolder(state)
        yield Gateway.of(folder, folder.read_running())
    finally:
        _imgcls("stop", "--state", str(state))


def _public_url(gateway: Gateway) -> str:
    return f"{gateway.folder.read_running().url}/predictions/imgcls"


def _imgcls(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imgcls.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
