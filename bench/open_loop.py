"""An open-loop load in a process of its own, for as long as a test needs it, and what each request got."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from imgcls.tuning.load import find_k6

SCRIPT = Path(__file__).with_name("open_loop.js")
LONGEST_S = 3600
JUST_SENT_S = 5.0


@dataclass(frozen=True)
class Answer:
    """One request: what came back for it, and when it was sent."""

    started_s: float  # since the epoch
    status: int  # 0: none
    version: str
    duration_ms: float
    request_id: str
    body: str  # of one that failed, or the error's words

    @property
    def ended_s(self) -> float:
        """When the answer was there, seconds since the epoch."""
        return self.started_s + self.duration_ms / 1000


@dataclass
class Load:
    """The answers of a load, once it has ended."""

    log: Path
    answers: list[Answer] = field(default_factory=list)
    dropped: int = 0  # arrivals that no connection was free for

    @property
    def failed(self) -> list[Answer]:
        """Those that were not answered with 200."""
        return [answer for answer in self.answers if answer.status != 200]

    def statuses(self) -> dict[int, int]:
        """Returns how many answers had each status."""
        return dict(Counter(answer.status for answer in self.answers))

    def versions(self) -> dict[str, int]:
        """Returns how many answers each version made; `-` is the gateway itself, or nobody."""
        return dict(Counter(answer.version for answer in self.answers))

    def interruption_s(self) -> float:
        """Returns the time from the first failed request's start to the last one's end; 0 without one."""
        if not self.failed:
            return 0.0
        return max(a.ended_s for a in self.failed) - min(a.started_s for a in self.failed)

    def quantile_ms(self, q: float) -> float:
        """Returns a quantile of the time that requests took, failed ones too."""
        durations = sorted(answer.duration_ms for answer in self.answers)
        return durations[min(len(durations) - 1, int(q * len(durations)))]


@contextmanager
def open_loop(
    url: str,
    image: Path,
    folder: Path,
    *,
    rate: int,
    connections: int = 400,
    key: str = "",
    bearer: str = "",
    settle_s: float = 1.0,
) -> Iterator[Load]:
    """Sends `rate` requests a second from a moment before the block until a moment after it.

    Args:
        url: where to.
        image: what is sent.
        folder: for k6's log.
        rate: arrivals a second, whatever the server does.
        connections: at most; an arrival that none is free for is counted as dropped.
        key: an API key of the gateway.
        bearer: a token, where the server itself is asked.
        settle_s: how long before and after the block.
    """
    log = folder / f"load-{time.time_ns()}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("K6_")}
    environment |= {
        "URL": url,
        "IMAGE": str(image),
        "RATE": str(rate),
        "CONNECTIONS": str(connections),
        "DURATION": f"{LONGEST_S}s",
        "KEY": key,
        "TOKEN": bearer,
    }
    command = [str(find_k6()), "run", "--quiet", "--no-usage-report", "--no-color", "--log-format", "raw"]
    command += ["--log-output", f"file={log}", str(SCRIPT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    load = Load(log)
    try:
        deadline_s = time.monotonic() + 30
        while not (log.exists() and log.stat().st_size):
            if process.poll() is not None or time.monotonic() > deadline_s:
                process.kill()
                raise RuntimeError(f"k6 sends nothing: {process.communicate()[1].decode()[-2000:]}")
            time.sleep(0.05)
        time.sleep(settle_s)
        yield load
        time.sleep(settle_s)
    finally:
        stopped_s = time.time()
        process.terminate()
        output, _ = process.communicate(timeout=60)
    lines = [line for line in output.decode().splitlines() if line.startswith("{")]
    load.dropped = json.loads(lines[-1])["dropped"] if lines else -1
    answers = [answer for line in log.read_text().splitlines() if (answer := _parse(line)) is not None]
    load.answers = [answer for answer in answers if not _is_cut_off(answer, stopped_s)]


def _is_cut_off(answer: Answer, stopped_s: float) -> bool:
    """Whether k6 gave a request up when it was stopped, one that it had just sent; an older one has hung."""
    return answer.status == 0 and answer.body == "context canceled" and answer.started_s > stopped_s - JUST_SENT_S


def _parse(line: str) -> Answer | None:
    parts = line.split()
    if len(parts) != 6 or not parts[0].isdigit():
        return None
    started_ms, status, version, duration_ms, request_id, body = parts
    return Answer(int(started_ms) / 1000, int(status), version, float(duration_ms), request_id, unquote(body))
