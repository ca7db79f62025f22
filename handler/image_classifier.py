"""The handler: what TorchServe calls in each worker.

    initialize ─► (preprocess ─► inference ─► postprocess) for each batch

It loads no pickle, falls back to nothing silently, and answers each item of a batch for itself: a bad image gets its
own 4xx with a reason, the others their predictions. Why it is not built on TorchServe's BaseHandler:
docs/architecture.md.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import handler
import model
from handler.errors import NonFiniteAnswerError, NotOfferedError, RequestError
from handler.request import ImageRequest, read_request
from handler.settings import count_threads, read_settings
from model.classifier import Classifier
from model.engines.choose import choose_engine
from model.errors import ImageError, ModelError
from model.labels import LABELS_FILE, rank, read_labels
from model.preprocess import pixels_from_bytes
from model.selfcheck import GoldenCheck
from model.spec import SPEC_FILE, read_spec

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Prepared = tuple[Pixels, int] | RequestError | ImageError  # of one item: its pixels and top_k, or why there are none
Probabilities = npt.NDArray[np.float32]


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
        self.choice = choose_engine(
            folder,
            spec,
            wanted=self.settings.engine,
            device=choose_device(context.system_properties.get("gpu_id")),
            threads=count_threads(self.settings, model_config),
            batch_sizes=sorted({1, int(model_config.get("batchSize", 1))}),
            check=GoldenCheck(folder, spec),
        )
        self.classifier = Classifier(spec, self.choice.engine)
        engine = self.choice.engine.describe()
        logger.info("%s %s: %s, engine %s (%s)", self.name, self.version, spec.network, engine, self.choice.reason)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answers a batch: one JSON document an item, in the batch's order."""
        prepared = self.preprocess(data, context)
        pixels = [item[0] for item in prepared if isinstance(item, tuple)]
        probabilities = self.inference(np.stack(pixels)) if pixels else np.empty((0, len(self.labels)), np.float32)
        return self.postprocess(prepared, probabilities, context)

    def describe(self) -> dict[str, Any]:
        """Returns what this worker runs, for the management API."""
        return {
            "model": self.name,
            "version": self.version,
            "network": self.classifier.spec.network,
            **self.choice.engine.describe(),
            "engine_reason": self.choice.reason,
            "engines_passed_over": list(self.choice.passed_over),
        }

    def preprocess(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Prepared]:
        """Reads, decodes, resizes and crops each item for itself."""
        return [self._prepare(item, context.request_processor[index]) for index, item in enumerate(data)]

    def inference(self, pixels: Pixels) -> Probabilities:
        """uint8 (B, C, H, W) -> probabilities (B, classes)."""
        return self.classifier.probabilities(pixels)

    def postprocess(self, prepared: Sequence[Prepared], probabilities: Probabilities, context: Any) -> list[bytes]:
        """Turns each item's row of probabilities, or its error, into its own answer and status."""
        rows = iter(probabilities)
        answers = []
        for index, item in enumerate(prepared):
            answer = item if isinstance(item, ModelError) else self._rank(next(rows), top_k=item[1])
            context.set_response_content_type(index, "application/json")
            if isinstance(answer, ModelError):
                context.set_response_status(code=answer.status, phrase=answer.code, idx=index)
                answer = {"error": {"code": answer.code, "reason": str(answer)}}
            answers.append(json.dumps(answer, allow_nan=False).encode())
        return answers

    def _prepare(self, item: Mapping[str, Any], headers: Any) -> Prepared:
        try:
            if headers.get_request_property("explain") == "True":
                raise NotOfferedError(
                    "this archive answers predictions only; ask /predictions instead of /explanations"
                )
            request: ImageRequest = read_request(item, headers, default_top_k=self.settings.top_k)
            spec = self.classifier.spec
            return pixels_from_bytes(request.image, spec, max_pixels=self.settings.max_pixels), request.top_k
        except (RequestError, ImageError) as err:
            return err

    def _rank(self, probabilities: Probabilities, *, top_k: int) -> dict[str, Any] | NonFiniteAnswerError:
        if not np.isfinite(probabilities).all():
            logger.error("%s %s answered an image with NaN or infinity", self.name, self.version)
            return NonFiniteAnswerError("the network answered this image with NaN or infinity")
        ranked = rank(probabilities, names=self.labels, top_k=top_k)
        return {"model": self.name, "version": self.version, "predictions": ranked}


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
