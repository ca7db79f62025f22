"""Decodes the images of a chunk, each for itself, on as many threads as the worker has, or JPEGs on its GPU.

Pillow lets go of Python's lock while it decodes and resizes. On a GPU this is what keeps the card fed: one core decodes
a few hundred photographs a second, a card classifies thousands. Where cores are few, `decode: gpu` leaves JPEGs to the
card (handler.card_decoding).
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from handler.device_errors import end_if_device_is_lost, free_memory
from handler.errors import Failure, RequestError, ServingError
from handler.network import Pixels, describe_failure
from handler.request import ImageRequest
from handler.settings import HandlerSettings
from model.errors import ImageError
from model.golden import GoldenItem
from model.images import peek_pixels
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec

if TYPE_CHECKING:
    from handler.card_decoding import CardDecoder

logger = logging.getLogger(__name__)


class Decoder:
    """Turns images of requests into the network's input; answers one caller at a time.

    Args:
        spec: of the network.
        settings: limits, and where JPEGs are decoded.
        device: of the worker.
        threads: to decode on.
        golden: inputs on which a GPU's decoding is compared with the CPU's.

    Raises:
        SpecError: JPEGs are to be decoded on a GPU that cannot.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: HandlerSettings,
        *,
        device: str,
        threads: int,
        golden: Sequence[GoldenItem] = (),
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._device = device
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads > 1 else None
        self._card = self._open_card(golden, threads=threads) if settings.decode == "gpu" else None

    @property
    def place(self) -> str:
        """Where JPEGs are decoded: a device."""
        return self._device if self._card else "cpu"

    def _open_card(self, golden: Sequence[GoldenItem], *, threads: int) -> "CardDecoder | None":
        from handler.card_decoding import CardDecoder, refuse_input  # here, as it imports torch

        refuse_input(self._spec)
        if self._device == "cpu":  # as where an archive is built for a machine that has one
            logger.warning("decode is gpu, and this worker has none: JPEGs are decoded on the CPU")
            return None
        card = CardDecoder(self._spec, self._settings, device=self._device, threads=threads)
        card.check(golden)
        return card

    def decode(self, images: Sequence[ImageRequest | RequestError]) -> list[Pixels | Failure]:
        """Returns of each image its pixels, uint8 (C, H, W), or what is wrong with it.

        Images that are in memory at the same time have `max_pixels` together, so that they need no more of it than the
        largest one that is accepted.

        Raises:
            SystemExit: the worker's GPU is lost.
        """
        contents: list[bytes | Pixels | Failure] = [self._read(image) for image in images]
        if self._card:
            contents = self._decode_on_card(contents, self._card)
        if self._pool is None or len(contents) == 1:
            return [self._decode(content) for content in contents]
        decoded: list[Pixels | Failure] = []
        for group in _group(contents, max_pixels=self._settings.max_pixels):
            decoded += self._pool.map(self._decode, group)
        return decoded

    def _decode_on_card(
        self, contents: Sequence[bytes | Pixels | Failure], card: "CardDecoder"
    ) -> list[bytes | Pixels | Failure]:
        """Replaces the files that the card takes by their pixels; the others stay what they are."""
        after = list(contents)
        sizes = {
            place: size
            for place, each in enumerate(contents)
            if isinstance(each, bytes) and (size := card.takes(each)) is not None
        }
        places = iter(sizes)
        for group in _group([contents[place] for place in sizes], max_pixels=self._settings.max_pixels):
            own = list(islice(places, len(group)))
            decoded: list[Pixels | None] | None = None
            try:
                files = [each for each in group if isinstance(each, bytes)]
                decoded = card.decode(files, [sizes[place] for place in own])
            except Exception as err:  # none of them is lost: the CPU has its turn
                end_if_device_is_lost(err, device=self._device)
                logger.warning("%d images could not be decoded on the GPU (%s), trying the CPU", len(group), err)
            if decoded is None:
                free_memory()  # outside, as the error holds on to what the batch has allocated
                continue
            for place, pixels in zip(own, decoded, strict=True):
                if pixels is not None:
                    after[place] = pixels
        return after

    def _read(self, image: ImageRequest | RequestError) -> bytes | Failure:
        if isinstance(image, RequestError):
            return image
        try:
            return image.source.read()
        except RequestError as err:
            return err
        except Exception as err:  # what nobody thought of, or no memory: this image's alone
            return describe_failure(err, device=self._device, otherwise=ServingError)

    def _decode(self, content: bytes | Pixels | Failure) -> Pixels | Failure:
        if not isinstance(content, bytes):
            return content
        max_pixels, max_bytes = self._settings.max_pixels, self._settings.max_bytes
        try:
            return pixels_from_bytes(content, self._spec, max_pixels=max_pixels, max_bytes=max_bytes)
        except ImageError as err:
            return err
        except Exception as err:  # as in _read
            return describe_failure(err, device=self._device, otherwise=ServingError)


def _group(
    contents: Sequence[bytes | Pixels | Failure], *, max_pixels: int
) -> Iterator[list[bytes | Pixels | Failure]]:
    """Splits a sequence, in its order, so that no group announces more pixels than one image may."""
    group: list[bytes | Pixels | Failure] = []
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
