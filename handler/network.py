"""Runs the network on what was decoded, so that no image fails for another.

A batch that fails is halved until it is known which image it is, or until the memory is enough.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from handler.device_errors import end_if_device_is_lost, free_memory, is_out_of_memory
from handler.errors import EngineFailedError, Failure, MemoryExhaustedError, NonFiniteAnswerError, ServingError

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]
Run = Callable[[Pixels], Probabilities]  # (B, C, H, W) -> (B, classes)


def run_decoded(run: Run, decoded: Sequence[Pixels | Failure], *, device: str) -> list[Probabilities | Failure]:
    """Returns each image's probabilities, shape (classes,), or why there are none.

    Args:
        run: answers a batch.
        decoded: of each image its pixels, uint8 (C, H, W), or what went wrong before.
        device: that it runs on.

    Raises:
        SystemExit: the device is lost.
    """
    pixels = [each for each in decoded if isinstance(each, np.ndarray)]
    rows = iter(_run_isolated(run, pixels, device=device) if pixels else ())
    return [next(rows) if isinstance(each, np.ndarray) else each for each in decoded]


def describe_failure(error: Exception, *, device: str, otherwise: type[ServingError]) -> ServingError:
    """Returns what is answered for an error that one image met, and logs it.

    Raises:
        SystemExit: the device is lost.
    """
    end_if_device_is_lost(error, device=device)
    if is_out_of_memory(error):
        free_memory()
        logger.error("out of memory at one image: %s", error)
        return MemoryExhaustedError("there was not enough memory for this image; try again later")
    logger.error("one image failed", exc_info=error)
    return otherwise(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _run_isolated(run: Run, pixels: Sequence[Pixels], *, device: str) -> list[Probabilities | Failure]:
    try:
        return [_check_finite(row) for row in run(np.stack(pixels))]
    except Exception as err:  # a runtime raises anything
        if len(pixels) == 1:
            return [describe_failure(err, device=device, otherwise=EngineFailedError)]
        end_if_device_is_lost(err, device=device)
        logger.warning("a batch of %d images failed (%s), trying its halves", len(pixels), err)
    free_memory()  # outside, as the error holds on to what the batch has allocated
    half = len(pixels) // 2
    return [row for part in (pixels[:half], pixels[half:]) for row in _run_isolated(run, part, device=device)]


def _check_finite(row: Probabilities) -> Probabilities | Failure:
    if np.isfinite(row).all():
        return row
    logger.error("an image was answered with NaN or infinity")
    return NonFiniteAnswerError("the network answered this image with NaN or infinity")
