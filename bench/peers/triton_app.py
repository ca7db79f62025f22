"""Triton, through PyTriton, which carries the server: two callables, one a thread of this process."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,no-any-return,attr-defined"

import json
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.peers.pipeline import load_pipeline
from bench.peers.settings import BATCH, DELAY_MS, WORKERS, Settings
from imgcls.serving.ports import ports_from


def make_callable(settings: Settings) -> Any:
    """Returns an inference callable with a pipeline of its own."""
    pipeline = load_pipeline(settings)

    @batch
    def infer(image: Any) -> dict[str, Any]:
        answers = pipeline.answer(image[:, 0].tolist())  # bytes (B, 1)
        return {"answer": np.array([[json.dumps(answer).encode()] for answer in answers], dtype=np.bytes_)}

    return infer


def main() -> None:
    """Runs the server until it is ended."""
    settings = Settings.from_environment()
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=settings.port,
        grpc_address="127.0.0.1",
        grpc_port=ports_from(0).grpc_inference,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classifier",
            infer_func=[make_callable(settings) for _ in range(WORKERS)],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=BATCH,
                batcher=DynamicBatcher(
                    max_queue_delay_microseconds=0 if settings.pipeline == "docs" else DELAY_MS * 1000
                ),
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
