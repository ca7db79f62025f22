"""FastAPI under uvicorn: an UploadFile as its tutorial has it, or the bare body.

uvicorn imports this module in each worker. With our engine the endpoint is a coroutine that does not yield while it
classifies, so that the engine, which answers one caller at a time, has one.
"""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,no-any-return,attr-defined"

from fastapi import FastAPI, Request, UploadFile

from bench.peers.pipeline import Answer, load_pipeline
from bench.peers.settings import Settings

app = FastAPI()
pipeline = load_pipeline(Settings.from_environment())


@app.post("/predict")
async def predict(file: UploadFile) -> Answer:
    """The documentation's way: a form with a file."""
    return pipeline.answer([await file.read()])[0]


@app.post("/raw")
async def predict_raw(request: Request) -> Answer:
    """The body is the file."""
    return pipeline.answer([await request.body()])[0]
