"""Decodes the images of a chunk, each for itself, on as many threads as the worker has.

Pillow lets go of Python's lock while it decodes and resizes. On a GPU this is what keeps the card fed: one core decodes
a few hundred photographs a second, a card classifies thousands.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from handler.errors import Failure, RequestError, ServingError
from handler.network import Pixels, describe_failure
from handler.request import ImageRequest
from handler.settings import HandlerSettings
from model.errors import ImageError
from model.images import peek_pixels
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec


class Decoder:
    """Turns images of requests into the network's input; answers one caller at a time."""

    def __init__(self, spec: ModelSpec, settings: HandlerSettings, *, device: str, threads: int) -> None:
        self._spec = spec
        self._settings = settings
        self._device = device
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads > 1 else None

    def decode(self, images: Sequence[ImageRequest | RequestError]) -> list[Pixels | Failure]:
        """Returns of each image its pixels, uint8 (C, H, W), or what is wrong with it.

        Images that are in memory at the same time have `max_pixels` together, so that they need no more of it than the
        largest one that is accepted.

        Raises:
            SystemExit: the worker's GPU is lost.
        """
        contents = [self._read(image) for image in images]
        if self._pool is None or len(contents) == 1:
            return [self._decode(content) for content in contents]
        decoded: list[Pixels | Failure] = []
        for group in _group(contents, max_pixels=self._settings.max_pixels):
            decoded += self._pool.map(self._decode, group)
        return decoded

    def _read(self, image: ImageRequest | RequestError) -> bytes | Failure:
        if isinstance(image, RequestError):
            return image
        try:
            return image.source.read()
        except RequestError as err:
            return err
        except Exception as err:  # what nobody thought of, or no memory: this image's alone
            return describe_failure(err, device=self._device, otherwise=ServingError)

    def _decode(self, content: bytes | Failure) -> Pixels | Failure:
        if not isinstance(content, bytes):
            return content
        max_pixels, max_bytes = self._settings.max_pixels, self._settings.max_bytes
        try:
            return pixels_from_bytes(content, self._spec, max_pixels=max_pixels, max_bytes=max_bytes)
        except ImageError as err:
            return err
        except Exception as err:  # as in _read
            return describe_failure(err, device=self._device, otherwise=ServingError)


def _group(contents: Sequence[bytes | Failure], *, max_pixels: int) -> Iterator[list[bytes | Failure]]:
    """Splits a sequence, in its order, so that no group announces more pixels than one image may."""
    group: list[bytes | Failure] = []
    pixels = 0
    for content in contents:
        own = peek_pixels(content) if isinstance(content, bytes) else 0
        if group and pixels + own > max_pixels:
            yield group
            group, pixels = [], 0
        group.append(content)
        pixels += own
    if group:
        yield group
