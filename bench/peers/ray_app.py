"""Ray Serve: one deployment of two replicas, one CPU each, as in its ResNet-50 example; ours with its batching."""
# mypy: disable-error-code="import-not-found,misc,union-attr,untyped-decorator,no-any-return,attr-defined"

import asyncio

import ray
from ray import serve
from starlette.requests import Request

from bench.peers.pipeline import Answer, load_pipeline
from bench.peers.settings import BATCH, DELAY_MS, WORKERS, Settings

OPTIONS = {"num_replicas": WORKERS, "ray_actor_options": {"num_cpus": 1}, "max_ongoing_requests": 64}


@serve.deployment(**OPTIONS)
class One:
    """Answers one request at a time."""

    def __init__(self) -> None:
        self.pipeline = load_pipeline(Settings.from_environment())

    async def __call__(self, request: Request) -> Answer:
        """The body is the file."""
        return self.pipeline.answer([await request.body()])[0]


@serve.deployment(**OPTIONS)
class Batched:
    """Gathers requests."""

    def __init__(self) -> None:
        self.pipeline = load_pipeline(Settings.from_environment())

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=DELAY_MS / 1000)
    async def answer(self, images: list[bytes]) -> list[Answer]:
        """Answers a batch."""
        return self.pipeline.answer(images)

    async def __call__(self, request: Request) -> Answer:
        """The body is the file."""
        return await self.answer(await request.body())


async def wait() -> None:
    """Sleeps until the process is ended."""
    await asyncio.Event().wait()


if __name__ == "__main__":
    settings = Settings.from_environment()
    ray.init(num_cpus=WORKERS, include_dashboard=False, object_store_memory=100_000_000, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": settings.port})
    serve.run((One if settings.pipeline == "docs" else Batched).bind())
    asyncio.run(wait())
