"""LitServe, in the shape of its guide's image classifier (lightning.ai/docs/litserve): base64 in JSON."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,no-any-return,attr-defined"

import base64
from collections.abc import Sequence
from typing import Any

import litserve
from fastapi import Request

from bench.peers.pipeline import Answer, load_pipeline
from bench.peers.settings import DELAY_MS, WORKERS, Settings


class ImageClassifier(litserve.LitAPI):
    """Its four verbs; with a batch larger than one, predict gets a list."""

    def setup(self, device: str) -> None:
        """Loads the pipeline in each worker."""
        self.pipeline = load_pipeline(Settings.from_environment())

    def decode_request(self, request: Request) -> bytes:
        """Gets the JSON, not the request, whatever the annotation says."""
        body: Any = request
        return base64.b64decode(body["image_data"])

    def batch(self, inputs: Sequence[bytes]) -> Sequence[bytes]:
        """Leaves the list as it is; by default it would be stacked."""
        return inputs

    def predict(self, x: Any) -> Any:
        """Answers one image, or a batch."""
        return self.pipeline.answer([x])[0] if isinstance(x, bytes) else self.pipeline.answer(x)

    def unbatch(self, output: Any) -> Any:
        """Leaves the list as it is."""
        return output

    def encode_response(self, output: Answer) -> Answer:
        """JSON."""
        return output


def main() -> None:
    """Runs the server until it is ended."""
    settings = Settings.from_environment()
    api = ImageClassifier(max_batch_size=settings.batch, batch_timeout=DELAY_MS / 1000 if settings.batch > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, track_requests=False)
    server.run(host="127.0.0.1", port=settings.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
