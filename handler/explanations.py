"""Explains images for /explanations, with a network of its own that is loaded when the first one is asked for.

What predicts is not touched: it may be quantised or compiled, and no gradient passes through it.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from handler.answers import Picture
from handler.errors import ExplanationError, Failure, NotOfferedError, OutOfTimeError
from handler.network import Pixels, Probabilities, describe_failure
from handler.pictures import draw_overlay
from model.spec import ModelSpec

if TYPE_CHECKING:
    from model.explain import Explainer, Explanation

BATCH_TIME_S = 20.0  # of all explanations of one batch; a worker that does not answer in 60 s is restarted
DIGITS = 4


class Explanations:
    """The explainer of one worker; takes any number of callers, one at a time.

    Args:
        folder: the unpacked archive.
        spec: of its network.
        device: that the worker has.
        threads: that torch may use.
    """

    def __init__(self, folder: Path, spec: ModelSpec, *, device: str, threads: int | None) -> None:
        self._folder, self._spec, self._device, self._threads = folder, spec, device, threads
        self._explainer: Explainer | None = None
        self._lock = threading.Lock()

    def explain(self, pixels: Pixels, target: int, *, deadline_s: float) -> "Explanation | Failure":
        """Explains one class in one image, or says why not.

        Args:
            pixels: uint8 (C, H, W).
            target: the class.
            deadline_s: of time.monotonic(); no explanation begins after it.

        Raises:
            SystemExit: the device is lost.
        """
        if time.monotonic() > deadline_s:
            return OutOfTimeError(f"explanations of one batch get {BATCH_TIME_S:.0f} s; send fewer at a time")
        try:
            with self._lock:
                if self._explainer is None:
                    self._explainer = self._load()
                return self._explainer.explain(pixels, target)
        except ModuleNotFoundError as err:
            package = str(err.name).partition(".")[0]
            return NotOfferedError(f"explanations need the Python package {package}; install it on the server")
        except Exception as err:  # torch and the network raise anything
            return describe_failure(err, device=self._device, otherwise=ExplanationError)

    def draw(self, explanation: "Explanation", pixels: Pixels, *, answer: dict[str, Any]) -> Picture:
        """Returns an explanation as a picture; its text chunks say what it shows.

        Args:
            explanation: what `explain` gave.
            pixels: uint8 (C, H, W), which were explained.
            answer: what `write_explanation` made of it.
        """
        texts = {key: str(answer[key]) for key in ("label", "index", "probability", "method", "layer")}
        are_bands = self._spec.ranges is not None
        return Picture(draw_overlay(pixels, explanation.heat_map, are_bands=are_bands, texts=texts))

    def _load(self) -> "Explainer":
        from model.explain import Explainer  # here, because it imports torch, which other engines do without

        return Explainer.load(self._folder, self._spec, device=self._device, threads=self._threads)


def start_deadline(clock: Callable[[], float] = time.monotonic) -> float:
    """Returns when the time of a batch's explanations is used up."""
    return clock() + BATCH_TIME_S


def write_explanation(
    explanation: "Explanation", *, target: int, label: str, probabilities: Probabilities
) -> dict[str, Any]:
    """Returns an explanation as it stands in JSON, beside the predictions."""
    heat_map: npt.NDArray[np.float64] = explanation.heat_map.astype(np.float64).round(DIGITS)
    return {
        "method": explanation.method,
        "layer": explanation.layer,
        "label": label,
        "index": target,
        "probability": float(probabilities[target]),
        "size": list(heat_map.shape),
        "heat_map": heat_map.tolist(),
    }
