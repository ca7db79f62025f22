"""What can be measured: each row of the table, by an id that --only takes.

inprocess…            the pipeline without a server: the limit
stock…                TorchServe with its own image_classifier
ours…                 this project's archive, served by `imgcls serve`; with -plain by TorchServe's own launcher, under
                      this project's settings: its start compares with ours-noop's
NAME-docs|ours|noop   another server: its documentation's pipeline, ours inside it, or none
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from bench.bodies import Framing
from bench.peers.settings import BATCH, WORKERS, Pipeline

Kind = Literal["inprocess", "stock", "ours", "plain", "noop", "peer"]
Command = Callable[[Path, int], list[str]]  # of the environment's Python and a port


@dataclass(frozen=True)
class Peer:
    """How one server is started and asked; `docs` is the path and framing of its documentation's own example."""

    title: str
    command: Command
    path: str = "/predict"
    framing: Framing = "raw"
    docs: tuple[str, Framing] | None = None


def _module(name: str) -> Command:
    return lambda python, port: [str(python), "-m", f"bench.peers.{name}_app"]


def _uvicorn(python: Path, port: int) -> list[str]:
    flags = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(WORKERS), "--log-level", "warning"]
    return [str(python), "-m", "uvicorn", "bench.peers.fastapi_app:app", "--no-access-log", *flags]


def _mosec(python: Path, port: int) -> list[str]:
    return [*_module("mosec")(python, port), "--address", "127.0.0.1", "--port", str(port), "--log-level", "warning"]


def _bentoml(python: Path, port: int) -> list[str]:
    flags = ["--host", "127.0.0.1", "--port", str(port), "--quiet"]
    return [str(python), "-m", "bentoml", "serve", "bench.peers.bentoml_app:Classifier", *flags]


PEERS = {
    "litserve": Peer("LitServe", _module("litserve"), framing="json"),
    "fastapi": Peer("FastAPI", _uvicorn, path="/raw", docs=("/predict", "form")),
    "mosec": Peer("mosec", _mosec, path="/inference"),
    "bentoml": Peer("BentoML", _bentoml, path="/raw", docs=("/predict", "form")),
    "ray": Peer("Ray Serve", _module("ray"), path="/"),
    "triton": Peer("Triton", _module("triton"), path="/v2/models/classifier/infer", framing="triton"),
}
PIPELINES: dict[Pipeline, str] = {"docs": "its documentation's, eager", "ours": "ours", "noop": "none"}


@dataclass(frozen=True)
class Subject:
    """One row of the table.

    Attributes:
        id: what --only takes.
        kind: who starts it.
        server: its name in the table.
        pipeline: in words.
        engine: of our pipeline, by name; "auto" is the fastest that the archive accepted. "" where there is none.
        peer: of PEERS, with its pipeline.
        tuned: whether it has our settings: threads of image_classifier, configuration of the no-op handler.
        batch: of the in-process limit.
    """

    id: str
    kind: Kind
    server: str
    pipeline: str
    engine: str = ""
    peer: str = ""
    runs: Pipeline = "ours"
    tuned: bool = False
    batch: int = 1


def list_subjects() -> list[Subject]:
    """Returns all rows, in the order of the table."""
    rows = [
        Subject("inprocess", "inprocess", "none: in process, one image at a time", "ours", "auto"),
        Subject("inprocess-batch", "inprocess", f"none: in process, batches of {BATCH}", "ours", "auto", batch=BATCH),
        Subject("inprocess-fp32", "inprocess", "none: in process, one image at a time", "ours", "openvino"),
        Subject("stock", "stock", "TorchServe as it comes", "image_classifier, eager", runs="docs"),
        Subject("stock-tuned", "stock", "TorchServe, one thread", "image_classifier, eager", runs="docs", tuned=True),
        Subject("ours-eager", "ours", "TorchServe, this project", "ours", "eager"),
        Subject("ours-fp32", "ours", "TorchServe, this project", "ours", "openvino"),
        Subject("ours-bf16", "ours", "TorchServe, this project", "ours", "openvino-bf16"),
        Subject("ours", "ours", "TorchServe, this project", "ours", "auto"),
        Subject("ours-plain", "plain", "TorchServe alone, this project", "ours", "auto", tuned=True),
        Subject("torchserve-noop", "noop", "TorchServe as it comes", "none", runs="noop"),
        Subject("ours-noop", "noop", "TorchServe, this project's settings", "none", runs="noop", tuned=True),
    ]
    for name, peer in PEERS.items():
        for pipeline, words in PIPELINES.items():
            engine = "auto" if pipeline == "ours" else ""
            rows.append(Subject(f"{name}-{pipeline}", "peer", peer.title, words, engine, name, pipeline))
    return rows


def choose(patterns: Sequence[str], *, without: Sequence[str] = ()) -> list[Subject]:
    """Returns the rows whose ids match one of the shell patterns.

    Raises:
        ValueError: a pattern matches none.
    """
    rows = list_subjects()
    ids = [row.id for row in rows]
    for pattern in (*patterns, *without):
        if not any(fnmatchcase(each, pattern) for each in ids):
            raise ValueError(f"no server is called {pattern!r}; expected a pattern of {', '.join(ids)}")
    return [
        row
        for row in rows
        if any(fnmatchcase(row.id, each) for each in patterns) and not any(fnmatchcase(row.id, x) for x in without)
    ]
