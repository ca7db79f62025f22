"""Decodes JPEGs on the GPU, many at a time, and resizes them there; what it does not take is left to the CPU.

nvImageCodec decodes with the card's own JPEG engine or its cores, and with the chroma upsampling that libjpeg-turbo
has: without it, colours at edges would not be those that the network was trained on, and torchvision's decode_jpeg has
no such switch. Of a batch that holds a broken file it decodes the others.

Whether an image is accepted, and why not, is still decided by `model.images`: only JPEGs whose header has passed all
limits reach the card, and what the card cannot decode is tried on the CPU, whose error is the answer.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from handler.network import Pixels
from handler.settings import HandlerSettings
from model.errors import SpecError
from model.golden import GoldenItem
from model.images import open_picture
from model.preprocess import find_square, pixels_from_bytes
from model.resample import INTERPOLATIONS, resample
from model.spec import ModelSpec

MAX_MEAN_DIFFERENCE = 1.0  # of 255, on a golden input: another rounding of the transform moves a pixel by less
INSTEAD = "set decode: cpu in the handler section of model-config.yaml"
_ORIENTATION, _UPRIGHT = 274, 1
_START, _END = b"\xff\xd8\xff", b"\xff\xd9"

logger = logging.getLogger(__name__)


class CardDecoder:
    """Decodes and resizes on one device; answers one caller at a time.

    Args:
        spec: of the network.
        settings: whose limits an image must keep.
        device: "cuda:N". On "cpu" the same code runs, for tests.
        threads: for the part of the work that stays with the CPU.

    Raises:
        SpecError: the network's input is not what the card decodes, or nvImageCodec is missing.
    """

    def __init__(self, spec: ModelSpec, settings: HandlerSettings, *, device: str, threads: int) -> None:
        if spec.ranges is not None or spec.channels != 3 or spec.interpolation not in INTERPOLATIONS:
            raise SpecError(
                f"decode is gpu, which is for pictures of 3 channels and for {', '.join(sorted(INTERPOLATIONS))}; the "
                f"network takes {spec.channels} channels, {spec.interpolation}; {INSTEAD}"
            )
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a broken file is answered, not logged
        try:
            from nvidia import nvimgcodec
        except ImportError as err:
            raise SpecError(f"decode is gpu, and {err}; pip install '.[gpu]', or {INSTEAD}") from err
        self._spec, self._settings, self._codec = spec, settings, nvimgcodec
        self._device = torch.device(device)
        self._is_card = self._device.type != "cpu"
        self._decoder = nvimgcodec.Decoder(
            device_id=self._device.index or 0 if self._is_card else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=threads,
            backends=None if self._is_card else [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
            options=":fancy_upsampling=1",
        )
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False)

    def takes(self, data: bytes) -> bool:
        """Tells whether a file is decoded here: a whole JPEG, upright, of usual colours, within all limits."""
        if not (data.startswith(_START) and data.endswith(_END)):
            return False
        try:
            picture = open_picture(data, max_pixels=self._settings.max_pixels, max_bytes=self._settings.max_bytes)
            is_upright = picture.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
        except MemoryError:
            raise
        except Exception:  # it is refused, or its EXIF block is broken: the CPU says which, or passes over it
            return False
        return is_upright and picture.mode in {"RGB", "L"} and picture.info.get("adobe_transform", 1) == 1

    @torch.inference_mode()
    def decode(self, contents: Sequence[bytes]) -> list[Pixels | None]:
        """Decodes files that `takes` has taken.

        Returns:
            Of each its pixels, uint8 (3, size, size), or None where the card could not decode it.
        """
        streams = [self._codec.CodeStream(content) for content in contents]
        cuda_stream = torch.cuda.current_stream(self._device).cuda_stream if self._is_card else 0
        images = self._decoder.decode(streams, params=self._params, cuda_stream=cuda_stream)
        squares = [self._to_square(image) for image in images if image is not None]
        made = iter(torch.stack(squares).cpu().numpy() if squares else ())
        return [None if image is None else next(made) for image in images]

    def check(self, items: Sequence[GoldenItem]) -> None:
        """Compares with the CPU's decoding on the archive's golden inputs.

        Raises:
            SpecError: a JPEG among them comes out otherwise.
        """
        taken = [item for item in items if self.takes(item.data)]
        largest = 0.0
        for item, pixels in zip(taken, self.decode([item.data for item in taken]), strict=True):
            expected = pixels_from_bytes(item.data, self._spec, exact=True).astype(np.int16)
            largest = max(largest, 255.0 if pixels is None else float(np.abs(expected - pixels).mean()))
            if largest > MAX_MEAN_DIFFERENCE:
                raise SpecError(
                    f"golden input {item.file}: decoded on {self._device} it differs from the CPU's by {largest:.2f} "
                    f"of 255 on average, where {MAX_MEAN_DIFFERENCE:g} is allowed; {INSTEAD}"
                )
        compared = f"{len(taken)} golden inputs within {largest:.2f} of 255 on average of the CPU's"
        logger.info("JPEGs are decoded on %s: %s", self._device, compared if taken else "no golden input is a JPEG")

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
