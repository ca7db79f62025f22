"""TorchServe in three ways: with its own image_classifier, with no handler to speak of, and with our archive."""

import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file

from bench.environments import PeerError, find_python
from bench.peers.settings import BATCH, DELAY_MS, WORKERS
from bench.running import ONE_THREAD, Running, clean_environment, run_server
from imgcls.archive.build import build_archive
from imgcls.archive.stage import ServingOptions
from imgcls.serving import config as configuration
from imgcls.serving import logs
from imgcls.serving.access import inference_token
from imgcls.serving.java import find_java
from imgcls.serving.ports import ports_from
from imgcls.serving.server import stop
from imgcls.serving.state import StateFolder
from model.labels import LABELS_FILE
from model.spec import SPEC_FILE, WEIGHTS_FILE, read_spec

CONFIG = Path(__file__).parents[1] / "config.properties"
BIN = Path(sys.executable).parent
NETWORK = """import timm
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = timm.create_model({name!r}, num_classes={classes})

    def forward(self, images):
        return self.network(images)
"""
NOOP = """def handle(data, context):
    if not data:
        return None
    return ['{"predictions": [{"label": "none", "index": 0, "probability": 1.0}]}'] * len(data)
"""
BATCHES = "minWorkers: {workers}\nmaxWorkers: {workers}\nbatchSize: {batch_size}\nmaxBatchDelay: {delay_ms}\n"


def build_ours(run: Path, store: Path, *, engine: str) -> Path:
    """Returns our archive whose workers take an engine; `store` keeps it for the next call."""
    archive = store / engine / "imgcls.mar"
    if not archive.exists():
        options = ServingOptions(workers=WORKERS, batch_size=BATCH, max_batch_delay_ms=DELAY_MS, engine=engine)
        build_archive(run, archive.parent, options=options, engines=(engine,))
    return archive


def unpack(archive: Path) -> Path:
    """Returns the archive's content as a folder beside it."""
    folder = archive.with_suffix("")
    if not folder.exists():
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
    return folder


def build_stock(run: Path, store: Path) -> Path:
    """Packs the run's weights for TorchServe's image_classifier, with its own archiver.

    Raises:
        PeerError: its network is not one of timm's.
    """
    archive, spec = store / "stock" / "stock.mar", read_spec(run / SPEC_FILE)
    if archive.exists():
        return archive
    if not spec.network.startswith("timm/") or (spec.size, spec.resize) != (224, 256):
        raise PeerError("image_classifier resizes to 256 and crops 224; give a timm network of that size")
    import torch

    archive.parent.mkdir(parents=True)
    model, weights = archive.with_name("network.py"), archive.with_name("weights.pt")
    model.write_text(NETWORK.format(name=spec.network.removeprefix("timm/"), classes=len(spec.classes)))
    torch.save({f"network.{name}": tensor for name, tensor in load_file(run / WEIGHTS_FILE).items()}, weights)
    extra = ["--model-file", str(model), "--serialized-file", str(weights), "--extra-files", str(run / LABELS_FILE)]
    return _archive(archive, handler="image_classifier", extra=extra)


def build_noop(store: Path, *, config: str = "") -> Path:
    """Packs a handler that answers a constant, with a model-config.yaml where one is given."""
    archive = store / f"noop-{'tuned' if config else 'plain'}" / "noop.mar"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True)
    handler, config_file = archive.with_name("noop_handler.py"), archive.with_name("model-config.yaml")
    handler.write_text(NOOP)
    config_file.write_text(config)
    return _archive(archive, handler=str(handler), extra=["--config-file", str(config_file)] if config else [])


def _archive(archive: Path, *, handler: str, extra: list[str]) -> Path:
    command = [str(BIN / "torch-model-archiver"), "--model-name", archive.stem, "--version", "1.0"]
    command += ["--export-path", str(archive.parent), "--handler", handler, *extra]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    if result.returncode != 0:
        raise PeerError(f"torch-model-archiver: {result.stderr[-300:]}")
    return archive


@contextmanager
def run_torchserve(
    archive: Path, *, tuned_config: bool, one_thread: bool, folder: Path, image: bytes
) -> Iterator[Running]:
    """Runs TorchServe through its own launcher.

    Args:
        archive: alone in its folder.
        tuned_config: this project's config.properties and logging, instead of the defaults.
        one_thread: a worker, instead of torch's default.
        folder: for its files; made.
        image: to ask until the answer is 200.
    """
    python = find_python("torchserve")
    folder.mkdir(parents=True)
    ports, overlay_file, log_config = ports_from(0), folder / "config.properties", folder / "log4j2.xml"
    own = configuration.read_config(CONFIG) if tuned_config else {}
    config = configuration.merge_config(own, configuration.Overlay(archive.parent, ports=ports), folder=folder)
    configuration.write_config(overlay_file, config | {"disable_token_authorization": "true"})
    log_config.write_text(logs.log4j_config())
    flags = ["--start", "--foreground", "--ncs", "--model-store", str(archive.parent), "--ts-config", str(overlay_file)]
    flags += [
        "--models",
        f"{archive.stem}={archive.name}",
        *(["--log-config", str(log_config)] if tuned_config else []),
    ]
    environment = {
        "JAVA_HOME": str(find_java().parents[1]),
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        **(ONE_THREAD if one_thread else {}),
    }
    command = [str(python), "-c", "from ts.model_server import start; start()", *flags]
    url = f"http://127.0.0.1:{ports.inference}/predictions/{archive.stem}"
    with run_server(
        command, url=url, framing="raw", environment=environment, folder=folder / "r", image=image
    ) as running:
        yield running


@contextmanager
def run_ours(archive: Path, *, folder: Path, image: bytes) -> Iterator[Running]:
    """Runs our archive as a user does, with `imgcls serve`; its start includes the checks and the golden answers."""
    state = StateFolder(folder)
    started = time.perf_counter()
    try:
        command = [str(BIN / "imgcls"), "serve", str(archive), "--ts-config", str(CONFIG), "--port", "0"]
        command += ["--state", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
        server = state.read()
        if result.returncode != 0 or server is None:
            raise PeerError(f"imgcls serve: {result.stderr.strip()[-300:]}")
        headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {inference_token(server, state)}"}
        url = f"{server.inference_url}/predictions/{server.model}"
        running = Running(server.server_id, url, "raw", headers, start_s=0)
        running.ask(image)
        yield Running(server.server_id, url, "raw", headers, start_s=time.perf_counter() - started)
    finally:
        stop(state)
