"""The handler: what TorchServe calls in each worker.

    initialize ─► (preprocess ─► inference ─► postprocess) for each batch

It loads no pickle, falls back to nothing silently, and answers each image of each request for itself: a bad one gets
its own 4xx with a reason, the others their predictions. Why it is not built on TorchServe's BaseHandler:
docs/architecture.md.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import handler
import model
from handler.answers import SERVER_ERROR, Answer, Picture, Result, write_answer
from handler.decoding import Decoder
from handler.device_errors import end_if_device_is_lost
from handler.errors import Failure, RequestError, ServingError
from handler.explanations import Explanations, start_deadline, write_explanation
from handler.network import Pixels, Probabilities, describe_failure, run_decoded
from handler.options import Options
from handler.request import Form, ImageRequest, Request, read_request
from handler.settings import count_threads, read_count, read_settings
from model.classifier import Classifier
from model.engines.choose import choose_engine
from model.labels import LABELS_FILE, rank, read_labels
from model.selfcheck import GoldenCheck
from model.spec import SPEC_FILE, read_spec

logger = logging.getLogger(__name__)


class ImageClassifier:
    """One classifier in one worker process."""

    def initialize(self, context: Any) -> None:
        """Loads the archive that TorchServe has unpacked, with an engine that answers its golden inputs right.

        torch is imported where the engine needs it, or where TorchServe gives a GPU, and not before.

        Raises:
            RuntimeError: the imported code is not the archive's, or TorchServe wants a GPU that torch cannot use.
            ModelError: the spec, weights, labels or settings cannot be used, the engine that they name cannot be
                started, or a golden answer is wrong.
        """
        folder = Path(context.system_properties["model_dir"])
        model_config = context.model_yaml_config or {}
        refuse_foreign_code(folder)
        self.settings = read_settings(model_config)
        spec = read_spec(folder / SPEC_FILE)
        self.labels = read_labels(folder / LABELS_FILE, count=len(spec.classes))
        self.name = context.manifest["model"]["modelName"]
        self.version = context.manifest["model"].get("modelVersion", "1.0")
        self.device = choose_device(context.system_properties.get("gpu_id"))
        self.batch_size = max(1, read_count(model_config, "batchSize") or 1)
        threads = count_threads(self.settings, model_config, gpus=count_gpus(self.device))
        golden = GoldenCheck(folder, spec, batch_size=self.batch_size)
        self.choice = choose_engine(
            folder,
            spec,
            wanted=self.settings.engine,
            device=self.device,
            threads=threads,
            batch_sizes=sorted({1, self.batch_size}),
            check=golden,
        )
        self.classifier = Classifier(spec, self.choice.engine)
        self.decoder = Decoder(spec, self.settings, device=self.device, threads=threads, golden=golden.items)
        self.explanations = Explanations(folder, spec, device=self.device, threads=threads)
        engine = self.choice.engine.describe()
        logger.info("%s %s: %s, engine %s (%s)", self.name, self.version, spec.network, engine, self.choice.reason)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answers a batch: one document an item, in the batch's order.

        Raises:
            SystemExit: the worker's GPU is lost.
        """
        try:
            requests = self.preprocess(data, context)
            results = self.inference([image for request in requests for image in request.images])
            return self.postprocess(requests, results, context)
        except Exception as err:
            end_if_device_is_lost(err, device=self.device)
            raise

    def describe(self) -> dict[str, Any]:
        """Returns what this worker runs, for the management API."""
        return {
            "model": self.name,
            "version": self.version,
            "network": self.classifier.spec.network,
            **self.choice.engine.describe(),
            "decode": self.decoder.place,
            "engine_reason": self.choice.reason,
            "engines_passed_over": list(self.choice.passed_over),
        }

    def preprocess(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Request]:
        """Reads each request for itself."""
        return [self._read(item, headers) for item, headers in zip(data, context.request_processor, strict=True)]

    def inference(self, images: Sequence[ImageRequest | RequestError]) -> list[Result | Picture]:
        """Returns each image's answer; `batch_size` of them are in memory at a time, whatever requests they are of."""
        deadline_s, results = start_deadline(), list[Result | Picture]()
        for start in range(0, len(images), self.batch_size):
            chunk = images[start : start + self.batch_size]
            decoded = self.decoder.decode(chunk)
            rows = run_decoded(self.classifier.probabilities, decoded, device=self.device)
            for image, pixels, row in zip(chunk, decoded, rows, strict=True):
                if isinstance(row, Failure):
                    results.append(row)
                elif isinstance(image, ImageRequest) and isinstance(pixels, np.ndarray):
                    results.append(self._answer(image, pixels, row, deadline_s=deadline_s))
        return results

    def postprocess(
        self, requests: Sequence[Request], results: Sequence[Result | Picture], context: Any
    ) -> list[bytes]:
        """Writes each request's answer in its own form."""
        left = iter(results)
        answers = []
        for index, request in enumerate(requests):
            own = [next(left) for _ in request.images]
            answer: Answer = write_answer(request, own, model=self.name, version=self.version)
            context.set_response_content_type(index, answer.content_type)
            if answer.status >= SERVER_ERROR:
                logger.warning("request %s: answered with %d", request.request_id or "without an id", answer.status)
            if answer.phrase:
                context.set_response_status(code=answer.status, phrase=answer.phrase, idx=index)
            answers.append(answer.body)
        return answers

    def _read(self, item: Mapping[str, Any], headers: Any) -> Request:
        try:
            return read_request(item, headers, defaults=Options(top_k=self.settings.top_k), labels=self.labels)
        except Exception as err:  # what nobody thought of, or no memory: this item's alone
            return Request(Form.IMAGE, error=describe_failure(err, device=self.device, otherwise=ServingError))

    def _answer(
        self, image: ImageRequest, pixels: Pixels, row: Probabilities, *, deadline_s: float
    ) -> Result | Picture:
        try:
            predictions = rank(row, names=self.labels, top_k=image.options.top_k)
            if image.kind == "prediction":
                return {"predictions": predictions}
            target = int(row.argmax()) if image.options.target is None else image.options.target
            explanation = self.explanations.explain(pixels, target, deadline_s=deadline_s)
            if isinstance(explanation, Failure):
                return explanation
            answer = write_explanation(explanation, target=target, label=self.labels[target], probabilities=row)
            if image.kind == "picture":
                return self.explanations.draw(explanation, pixels, answer=answer)
            return {"predictions": predictions, "explanation": answer}
        except Exception as err:  # as in _read: a picture may take more memory than there is
            return describe_failure(err, device=self.device, otherwise=ServingError)


def choose_device(gpu_id: int | None) -> str:
    """Returns the device that TorchServe gave this worker: the GPU of that number, or the CPU.

    Raises:
        RuntimeError: TorchServe counted a GPU that torch cannot use.
    """
    if gpu_id is None or gpu_id < 0:
        return "cpu"
    import torch  # here, because workers on the CPU may do without

    if not torch.cuda.is_available():
        raise RuntimeError(
            f"TorchServe gave this worker GPU {gpu_id}, but torch {torch.__version__} cannot use CUDA: "
            "update the NVIDIA driver, or set number_of_gpu=0 in config.properties"
        )
    return f"cuda:{gpu_id}"


def count_gpus(device: str) -> int:
    """Returns how many GPUs share this machine's cores, 0 for a worker on the CPU."""
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def refuse_foreign_code(folder: Path) -> None:
    """Checks that the imported `model` and `handler` are the archive's, byte for byte.

    $PYTHONPATH stands before the archive on a worker's path: a checkout of this repository on it would silently be
    served instead of what was packed.

    Raises:
        RuntimeError: an imported file differs from the archive's.
    """
    for package in (model, handler):
        loaded = Path(str(package.__file__)).parent
        for packed in sorted((folder / package.__name__).rglob("*.py")):
            other = loaded / packed.relative_to(folder / package.__name__)
            if not other.is_file() or other.read_bytes() != packed.read_bytes():
                raise RuntimeError(
                    f"{other} was imported and differs from {packed.relative_to(folder)} in the archive: "
                    "take the folder that holds it off PYTHONPATH"
                )
