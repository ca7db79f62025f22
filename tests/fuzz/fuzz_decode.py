"""Coverage-guided fuzzing of what a client's bytes go through: `python tests/fuzz/fuzz_decode.py CORPUS [-runs=N …]`.

The first byte says which way they go: as an image into the decoder of pictures or of bands, or as a JSON body into the
reader of requests and each of its images into the decoder. libFuzzer keeps what reaches new code in CORPUS, which
grows; a crash ends the process with a status and leaves the input in a file. Instrumented are Pillow's plugins, `model`
and `handler`; Pillow's C code is not.
"""

import sys

import atheris

with atheris.instrument_imports(include=["PIL", "model", "handler"], enable_loader_override=False):
    from PIL import (  # noqa: F401  # noqa: F401
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        MpoImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    from handler.errors import RequestError
    from handler.options import Options
    from handler.request import ImageRequest, read_request
    from model.errors import ImageError
    from model.preprocess import pixels_from_bytes
    from model.spec import ModelSpec

MAX_PIXELS = 250_000
LABELS = ("cat", "dog")
SPEC = ModelSpec(size=8, resize=9, mean=(0.5,) * 3, std=(0.5,) * 3, classes=LABELS)
BANDS = ModelSpec(
    size=8, resize=9, mean=(0.5,) * 5, std=(0.5,) * 5, classes=LABELS, channels=5, ranges=((0, 4095),) * 5
)


class Headers:
    """A request with no header but the type of its body."""

    def get_request_properties(self) -> dict:
        return {"body": {"content-type": "application/json"}}


def fuzz(data: bytes) -> None:
    """Raises what no client may cause."""
    if data[:1] != b"j":
        decode(data[1:], spec=BANDS if data[:1] == b"b" else SPEC)
        return
    request = read_request({"body": data[1:]}, Headers(), defaults=Options(top_k=1), labels=LABELS)
    assert bool(request.images) != bool(request.error), request
    for image in request.images:
        if isinstance(image, ImageRequest):
            try:
                content = image.source.read()
            except RequestError as err:
                assert_refused(err)
            else:
                decode(content)
        else:
            assert_refused(image)


def decode(content: bytes, *, spec: ModelSpec = SPEC) -> None:
    try:
        pixels = pixels_from_bytes(content, spec, max_pixels=MAX_PIXELS)
    except ImageError as err:
        assert_refused(err)
    else:
        assert (pixels.shape, pixels.dtype) == ((spec.channels, 8, 8), "uint8")


def assert_refused(error: ImageError | RequestError) -> None:
    assert 400 <= error.status < 500, error
    assert str(error)
    assert "\n" not in str(error)


atheris.Setup(sys.argv, fuzz)
atheris.Fuzz()
