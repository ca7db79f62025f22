"""mosec: with the documentation's pipeline two stages, as its ResNet-50 example; else one stage that takes batches."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,no-any-return,attr-defined"

import json
from typing import Any

from mosec import Server, Worker

from bench.peers.pipeline import Answer, Docs, load_pipeline
from bench.peers.settings import BATCH, DELAY_MS, WORKERS, Settings


class Bytes(Worker):
    """Takes the bare body, answers JSON."""

    def deserialize(self, data: bytes) -> bytes:
        """The body as it is."""
        return data

    def serialize(self, data: Answer) -> bytes:
        """JSON."""
        return json.dumps(data).encode()


class Classify(Bytes):
    """The whole pipeline in one stage."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = load_pipeline(Settings.from_environment())

    def forward(self, data: list[bytes]) -> list[Answer]:
        """Answers a batch."""
        return self.pipeline.answer(data)


class Prepare(Bytes):
    """The first of two stages: decodes and normalises one image."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = Docs(Settings.from_environment())

    def forward(self, data: bytes) -> Any:
        """Image file -> float32 array (C, H, W)."""
        return self.pipeline.prepare(data).numpy()


class Infer(Bytes):
    """The second: the network on a batch of arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = Docs(Settings.from_environment())

    def forward(self, data: list[Any]) -> list[Answer]:
        """Float32 arrays (C, H, W) -> answers, by one run of the network."""
        import numpy as np
        import torch

        with torch.inference_mode():
            rows = torch.softmax(self.pipeline.network(torch.from_numpy(np.stack(data))), dim=1)
        values, indices = torch.topk(rows, 5)
        labels = self.pipeline.labels
        return [
            {"predictions": [{"label": labels[at], "index": at, "probability": p} for p, at in zip(*row, strict=True)]}
            for row in zip(values.tolist(), indices.tolist(), strict=True)
        ]


if __name__ == "__main__":
    server = Server()
    if Settings.from_environment().pipeline == "docs":
        server.append_worker(Prepare, num=WORKERS)
        server.append_worker(Infer, num=WORKERS, max_batch_size=BATCH)
    else:
        server.append_worker(Classify, num=WORKERS, max_batch_size=BATCH, max_wait_time=DELAY_MS)
    server.run()
