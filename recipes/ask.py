"""Asks a gateway at a steady rate, whatever it answers, and tells at the end who answered what.

    python recipes/ask.py http://127.0.0.1:8000 --data digits --rate 45 --state .imgcls/demo-rollout

The images are a test set's, which no training has seen. What they really show is handed in with `imgcls rollout label`
some seconds later, as people or a later step of a process would. Ends after --seconds, or on SIGTERM or Ctrl-C; exits 1
when a request failed.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

import requests
import typer
from requests.adapters import HTTPAdapter

from imgcls.data.sources import open_source
from imgcls.errors import DataError, ImgclsError
from imgcls.serving.state import DEFAULT_FOLDER

CONNECTIONS = 64  # more requests than that are never in flight here: the rate times the timeout is less
TIMEOUT_S = 10.0
LABEL_EVERY_S = 3.0
SERVED = 200


@dataclass(frozen=True)
class Question:
    """One image and what it shows."""

    image: bytes
    label: str


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int  # 0: nothing
    version: str
    request_id: str
    label: str  # what the image shows, not what was answered
    is_right: bool
    ms: float


class Labels:
    """Hands in what has come back since the last time, in a thread of its own."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._waiting: list[Answer] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="labels")
        self._thread.start()

    def add(self, answer: Answer) -> None:
        """Takes a request whose label will be known."""
        with self._lock:
            self._waiting.append(answer)

    def close(self) -> None:
        """Hands in nothing more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LABEL_EVERY_S):
            with self._lock:
                answers, self._waiting = self._waiting, []
            if answers:
                self._hand_in(answers)

    def _hand_in(self, answers: Sequence[Answer]) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.writelines(json.dumps({"request_id": a.request_id, "label": a.label}) + "\n" for a in answers)
            file.flush()
            command = [sys.executable, "-m", "imgcls.cli.main", "rollout", "label", file.name]
            command += ["--state", str(self._state)]
            # In a session of its own, so that Ctrl-C ends it with the rest, and not in the middle of its import.
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, start_new_session=True)


def ask(
    url: Annotated[str, typer.Argument(help="The gateway's address.")],
    *,
    model: Annotated[str, typer.Option(help="The model's name.")] = "imgcls",
    data: Annotated[str, typer.Option(help="The images: a source with a test split.")] = "digits",
    rate: Annotated[float, typer.Option(min=0.1, max=200, help="Requests a second.")] = 30.0,
    seconds: Annotated[float, typer.Option(min=1, help="When to end at the latest.")] = 300.0,
    state: Annotated[Path, typer.Option(help="State folder of the gateway.")] = DEFAULT_FOLDER,
) -> None:
    """Asks until it shall end, and prints how many answers each version gave, with which status."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    questions = read_questions(data)
    labels = Labels(state)
    with make_session() as session, ThreadPoolExecutor(CONNECTIONS) as pool:

        def send(question: Question) -> Answer:
            answer = ask_one(session, f"{url}/predictions/{model}", question)
            if answer.status == SERVED:
                labels.add(answer)
            return answer

        sent: list[Future[Answer]] = [
            pool.submit(send, question)
            for question in at_rate(questions, rate=rate, seconds=seconds, stopping=stopping)
        ]
    labels.close()
    answers = [each.result() for each in sent]
    print(describe(answers), flush=True)
    if any(answer.status != SERVED for answer in answers):
        raise DataError("requests have failed")


def read_questions(data: str) -> list[Question]:
    """Returns the test images of a source as files with their labels."""
    source = open_source(data)
    if "test" not in source.splits:
        raise DataError(f"{data}: has no test split; it has {', '.join(source.splits)}")
    questions = [Question(each.read(), source.classes[each.label]) for each in source.splits["test"].samples]
    random.Random(0).shuffle(questions)  # they come class by class, and each stretch shall show all of them
    return questions


def at_rate(
    questions: Sequence[Question], *, rate: float, seconds: float, stopping: threading.Event
) -> Iterator[Question]:
    """Yields a question whenever one is due, over and over; none is held back because an answer is late."""
    began_s = time.monotonic()
    for number, question in enumerate(cycle(questions)):
        due_s = number / rate
        if due_s > seconds or stopping.wait(max(0.0, began_s + due_s - time.monotonic())):
            return
        yield question


def make_session() -> requests.Session:
    """Returns a session with a connection for each request in flight; nothing is retried or taken over a proxy."""
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_maxsize=CONNECTIONS, max_retries=0))
    return session


def ask_one(session: requests.Session, url: str, question: Question) -> Answer:
    """Sends one image and waits for its answer."""
    began_s = time.monotonic()
    try:
        response = session.post(
            url, data=question.image, headers={"Content-Type": "application/octet-stream"}, timeout=TIMEOUT_S
        )
    except requests.RequestException as err:
        return Answer(0, type(err).__name__, "", question.label, False, 1000 * (time.monotonic() - began_s))
    best = response.json()["predictions"][0]["label"] if response.status_code == SERVED else None
    return Answer(
        status=response.status_code,
        version=response.headers.get("X-Imgcls-Version", "none"),
        request_id=response.headers.get("X-Request-Id", ""),
        label=question.label,
        is_right=best == question.label,
        ms=1000 * (time.monotonic() - began_s),
    )


def describe(answers: Sequence[Answer]) -> str:
    """Returns how many requests there were, and a line for each version and status."""
    failed = sum(answer.status != SERVED for answer in answers)
    lines = [f"{len(answers):,} requests, {failed} failed"]
    counts = Counter((answer.version, answer.status) for answer in answers)
    for (version, status), count in sorted(counts.items()):
        own = [answer for answer in answers if (answer.version, answer.status) == (version, status)]
        times = sorted(answer.ms for answer in own)
        right = f", {100 * sum(answer.is_right for answer in own) / count:.1f} % right" if status == SERVED else ""
        lines.append(f"  {version:8} status {status}: {count:6,} answers, median {times[count // 2]:.0f} ms{right}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        typer.run(ask)
    except ImgclsError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
