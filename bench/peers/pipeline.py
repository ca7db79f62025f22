"""The three pipelines that each server is measured with, from an image's bytes to its answer.

docs   Pillow, torchvision's transforms, PyTorch eager: what every server's documentation shows
ours   the project's decode and its engine
noop   a constant answer: what is left is the server's own cost
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from bench.peers.settings import BATCH, Settings

Answer = dict[str, Any]
THREADS = 1


class Classify(ABC):
    """One worker's pipeline; answers one caller at a time."""

    @abstractmethod
    def answer(self, images: Sequence[bytes]) -> list[Answer]:
        """Returns the best classes of each image file, as {"predictions": [{"label", "index", "probability"}]}."""


class Noop(Classify):
    """Looks at nothing."""

    def answer(self, images: Sequence[bytes]) -> list[Answer]:
        """Returns the same for all."""
        return [{"predictions": [{"label": "none", "index": 0, "probability": 1.0}]} for _ in images]


class Ours(Classify):
    """The project's `model` package, on an unpacked archive."""

    def __init__(self, settings: Settings) -> None:
        from model.classifier import Classifier
        from model.engines.choose import choose_engine
        from model.labels import LABELS_FILE, read_labels
        from model.spec import SPEC_FILE, read_spec

        folder, self.spec = settings.archive, read_spec(settings.archive / SPEC_FILE)
        self.labels = read_labels(folder / LABELS_FILE, count=len(self.spec.classes))
        choice = choose_engine(folder, self.spec, wanted=settings.engine, threads=THREADS, batch_sizes=(1, BATCH))
        self.classifier = Classifier(self.spec, choice.engine)

    def answer(self, images: Sequence[bytes]) -> list[Answer]:
        """Decodes one after the other, and runs the engine once."""
        import numpy as np

        from model.labels import rank
        from model.preprocess import pixels_from_bytes

        pixels = np.stack([pixels_from_bytes(image, self.spec) for image in images])  # (B, C, H, W)
        rows = self.classifier.probabilities(pixels)
        return [{"predictions": rank(row, names=self.labels, top_k=5)} for row in rows]


class Docs(Classify):
    """torchvision's ImageNet preset in front of the network, image by image."""

    def __init__(self, settings: Settings) -> None:
        import torch
        from torchvision import transforms

        from model.labels import LABELS_FILE, read_labels
        from model.network import load_network
        from model.spec import SPEC_FILE, WEIGHTS_FILE, read_spec

        torch.set_num_threads(THREADS)
        folder, spec = settings.archive, read_spec(settings.archive / SPEC_FILE)
        self.labels = read_labels(folder / LABELS_FILE, count=len(spec.classes))
        self.network = load_network(spec, folder / WEIGHTS_FILE).eval()
        self.transform = transforms.Compose(
            [
                transforms.Resize(spec.resize),
                transforms.CenterCrop(spec.size),
                transforms.ToTensor(),
                transforms.Normalize(mean=spec.mean, std=spec.std),
            ]
        )

    def prepare(self, image: bytes) -> Any:
        """Image file -> float32 tensor (C, H, W)."""
        from PIL import Image

        return self.transform(Image.open(io.BytesIO(image)).convert("RGB"))

    def classify(self, tensor: Any) -> Answer:
        """Float32 tensor (C, H, W) -> answer."""
        import torch

        with torch.inference_mode():
            probabilities = torch.softmax(self.network(tensor.unsqueeze(0))[0], dim=0)
            values, indices = torch.topk(probabilities, 5)
        best = zip(values.tolist(), indices.tolist(), strict=True)
        return {"predictions": [{"label": self.labels[at], "index": at, "probability": value} for value, at in best]}

    def answer(self, images: Sequence[bytes]) -> list[Answer]:
        """One after the other."""
        return [self.classify(self.prepare(image)) for image in images]


def load_pipeline(settings: Settings) -> Classify:
    """Loads what the settings name; imports nothing that it does not need."""
    if settings.pipeline == "noop":
        return Noop()
    return Ours(settings) if settings.pipeline == "ours" else Docs(settings)
