"""BentoML: a service with an image in a form, as its documentation has it, or a file as the whole body."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,no-any-return,attr-defined"

from pathlib import Path
from typing import Any

import bentoml
from PIL import Image

from bench.peers.pipeline import Answer, Docs, load_pipeline
from bench.peers.settings import WORKERS, Settings


@bentoml.service(workers=WORKERS, traffic={"timeout": 60})
class Classifier:
    """One instance a worker."""

    def __init__(self) -> None:
        self.pipeline: Any = load_pipeline(Settings.from_environment())

    @bentoml.api
    def predict(self, file: Image.Image) -> Answer:
        """The documentation's way: BentoML decodes, and calls from one of its threads."""
        assert isinstance(self.pipeline, Docs)
        return self.pipeline.classify(self.pipeline.transform(file.convert("RGB")))

    @bentoml.api
    async def raw(self, file: Path, /) -> Answer:
        """The body is the file, which BentoML puts on disk; a coroutine, as our engine has one caller at a time."""
        return self.pipeline.answer([file.read_bytes()])[0]
