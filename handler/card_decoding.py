"""Decodes JPEGs on the GPU, many at a time, and resizes them there; what it does not take is left to the CPU.

nvImageCodec decodes with the card's own JPEG engine or its cores, and with the chroma upsampling that libjpeg-turbo
has: without it, colours at edges would not be those that the network was trained on, and torchvision's decode_jpeg has
no such switch. Of a batch that holds a broken file it decodes the others.

Whether an image is accepted, and why not, is still decided by `model.images`. Its parser and nvImageCodec's read odd
headers differently, and a picture of another size than was announced has crashed the latter: only JPEGs that every
parser reads alike go to the card, and only where it announces the same size. What the card cannot decode is tried on
the CPU, whose error is the answer.
"""

import io
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from handler.network import Pixels
from handler.settings import HandlerSettings
from model.decode_limits import measure_plain_jpeg
from model.errors import SpecError
from model.golden import GoldenItem
from model.images import open_picture
from model.preprocess import find_square, pixels_from_bytes
from model.resample import INTERPOLATIONS, resample
from model.spec import ModelSpec

MAX_MEAN_DIFFERENCE = 1.0  # of 255, on a golden input: another rounding of the transform moves a pixel by less
INSTEAD = "set decode: cpu in the handler section of model-config.yaml"
_ORIENTATION, _UPRIGHT = 274, 1

Size = tuple[int, int]  # width and height

logger = logging.getLogger(__name__)


class CardDecoder:
    """Decodes and resizes on one device; answers one caller at a time.

    Args:
        spec: of the network.
        settings: whose limits an image must keep.
        device: "cuda:N". On "cpu" the same code runs, for tests.
        threads: for the part of the work that stays with the CPU.

    Raises:
        SpecError: nvImageCodec is missing, or does not start.
    """

    def __init__(self, spec: ModelSpec, settings: HandlerSettings, *, device: str, threads: int) -> None:
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a broken file is answered; a log line says no more
        try:
            from nvidia import nvimgcodec
        except ImportError as err:
            raise SpecError(f"decode is gpu, and {err}; pip install '.[gpu]', or {INSTEAD}") from err
        self._spec, self._settings, self._codec = spec, settings, nvimgcodec
        self._device = torch.device(device)
        self._is_card = self._device.type != "cpu"
        self._decoder: Any = nvimgcodec.Decoder(
            device_id=(self._device.index or 0) if self._is_card else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=threads,
            backends=[nvimgcodec.Backend(kind) for kind in self._list_backends()],
            options=":fancy_upsampling=1",
        )
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False)

    def _list_backends(self) -> list[Any]:
        """Without nvImageCodec's own CPU decoder on a card: the CPU's turn is ours."""
        kinds = self._codec
        return [kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU] if self._is_card else [kinds.CPU_ONLY]

    def takes(self, data: bytes) -> Size | None:
        """Returns the size of a file that is decoded here: a plain JPEG, upright, of usual colours, within all limits.

        None is for all others.
        """
        size = measure_plain_jpeg(data)
        if size is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as in decode_picture: senders do not write into our log
                picture = open_picture(data, max_pixels=self._settings.max_pixels, max_bytes=self._settings.max_bytes)
                is_upright = picture.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
        except Exception:  # it is refused, or its EXIF block is broken: the CPU says which, or passes over it
            return None
        is_usual = picture.mode in {"RGB", "L"} and picture.info.get("adobe_transform", 1) == 1
        return size if is_upright and is_usual and picture.size == size else None

    @torch.inference_mode()
    def decode(self, contents: Sequence[bytes], sizes: Sequence[Size]) -> list[Pixels | None]:
        """Decodes files that `takes` has taken.

        Args:
            contents: the files.
            sizes: what `takes` has said of each.

        Returns:
            Of each its pixels, uint8 (3, size, size), or None where the card could not decode it.
        """
        streams = [self._codec.CodeStream(content) for content in contents]
        agreed = [
            place
            for place, (stream, size) in enumerate(zip(streams, sizes, strict=True))
            if (stream.width, stream.height) == size
        ]
        cuda_stream = torch.cuda.current_stream(self._device).cuda_stream if self._is_card else 0
        images = self._decoder.decode(
            [streams[place] for place in agreed], params=self._params, cuda_stream=cuda_stream
        )
        squares = {
            place: self._to_square(image) for place, image in zip(agreed, images, strict=True) if image is not None
        }
        pixels: list[Pixels | None] = [None] * len(contents)
        made = torch.stack(list(squares.values())).cpu().numpy() if squares else ()
        for place, square in zip(squares, made, strict=True):
            pixels[place] = square
        return pixels

    def check(self, items: Sequence[GoldenItem]) -> None:
        """Compares with the CPU's decoding on the archive's golden inputs; those that are no JPEGs are made such.

        Raises:
            SpecError: one of them comes out otherwise, or not at all.
        """
        largest = 0.0
        for item in items:
            data = item.data if self.takes(item.data) else _as_jpeg(item.data)
            size = self.takes(data)
            try:
                [pixels] = self.decode([data], [size]) if size else [None]
            except Exception as err:  # nvImageCodec and CUDA raise what they like
                raise SpecError(
                    f"golden input {item.file} cannot be decoded on {self._device}: {err}; {INSTEAD}"
                ) from err
            expected = pixels_from_bytes(data, self._spec, exact=True).astype(np.int16)
            largest = max(largest, 255.0 if pixels is None else float(np.abs(expected - pixels).mean()))
            if largest > MAX_MEAN_DIFFERENCE:
                raise SpecError(
                    f"golden input {item.file}: decoded on {self._device} it differs from the CPU's by {largest:.2f} "
                    f"of 255 on average, where {MAX_MEAN_DIFFERENCE:g} is allowed; {INSTEAD}"
                )
        logger.info(
            "JPEGs are decoded on %s: %d golden inputs within %.2f of 255 on average of the CPU's",
            *(self._device, len(items), largest),
        )

    def _to_square(self, image: Any) -> Tensor:
        """Image of nvImageCodec, uint8 (H, W, 3) -> uint8 (3, size, size)."""
        pixels = torch.utils.dlpack.from_dlpack(image) if self._is_card else torch.from_numpy(np.asarray(image))
        height, width = pixels.shape[:2]
        return resample(
            pixels.permute(2, 0, 1),
            box=find_square((0, 0, width, height), self._spec),
            size=self._spec.size,
            interpolation=self._spec.interpolation,
        )


def refuse_input(spec: ModelSpec) -> None:
    """Raises SpecError where the network's input is not what a card decodes."""
    if spec.ranges is not None or spec.channels != 3 or spec.interpolation not in INTERPOLATIONS:
        raise SpecError(
            f"decode is gpu, which is for pictures of 3 channels and for {', '.join(sorted(INTERPOLATIONS))}; the "
            f"network takes {spec.channels} channels, {spec.interpolation}; {INSTEAD}"
        )


def _as_jpeg(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
