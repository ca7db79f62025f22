"""Whether a run takes bands instead of pictures, and which range of each band's samples counts.

Eight bits are left of a sample, so its range decides what the network can tell apart: reflectances of a satellite lie
in the lowest sixth of 16 bits. What is measured is written into the spec, and serving does the same.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls.data.bands import read_deep
from imgcls.errors import UsageError
from imgcls.training.config import TrainConfig
from model.bands import Range, is_no_picture, read_bands
from model.errors import ImageError
from model.spec import PICTURES

PERCENTILES = (0.1, 99.9)  # of the measured samples: a few dead or glaring pixels do not stretch the range
PIXELS = 65_536  # looked at of each image and band
HALF = 2**15  # of the values of 16 bits
FEW = 8  # levels of 256: a picture of fewer shows nothing


def decide_ranges(config: TrainConfig, files: Sequence[bytes]) -> tuple[Range, ...] | None:
    """Returns of each band the samples that become 0 and 255, or None where the run takes pictures.

    Bands are taken where `ranges` is given, where `channels` is no number that a picture has, or where neither is given
    and most of these files are TIFFs that no picture viewer would open.

    Args:
        config: of the run.
        files: some of its training images.

    Raises:
        UsageError: `ranges` has another number of them than there are bands, or one without a width; or none of the
            files has the bands.
    """
    if not _takes_bands(config, files):
        return None
    given = config.ranges or []
    for low, high in given:
        if low >= high:
            raise UsageError(f"ranges has [{low}, {high}]; expected the lower sample first, such as [[0, 4095]]")
    found = _read_all(files)
    counts = Counter(len(samples) for samples in found)
    count = config.channels or (len(given) if len(given) > 1 else counts.most_common(1)[0][0] if counts else 0)
    if not counts[count]:
        seen = ", ".join(f"{number} of {bands}" for bands, number in counts.most_common()) or "none can be read"
        raise UsageError(
            f"the run takes TIFFs of {count or 'some'} bands; of the first {len(files)} images none is one "
            f"(bands of those that are TIFFs: {seen}); set --channels to the number of bands"
        )
    if given:
        if len(given) not in {1, count}:
            raise UsageError(f"ranges has {len(given)} ranges; expected one for all, or {count}, one a band")
        return tuple(given) * (count if len(given) == 1 else 1)
    return _measure([samples for samples in found if len(samples) == count], is_private=config.is_private)


def check_depth(config: TrainConfig, files: Sequence[bytes]) -> str | None:
    """Returns a warning, or None, on pictures of 16 bits that fill less than half of them: the high byte is trained on.

    Args:
        config: of the run, which takes pictures.
        files: some of its training images; what is said is of those with 16 bits, where most have them.

    Raises:
        UsageError: the high byte of nearly all samples is one of a few. A run that is resumed is only warned.
    """
    deep = [samples for samples in map(read_deep, files) if samples is not None]
    if 2 * len(deep) <= len(files):
        return None
    bands = Counter(map(len, deep)).most_common(1)[0][0]
    ranges = _measure([samples for samples in deep if len(samples) == bands], is_private=False)
    levels = max((high >> 8) - (low >> 8) + 1 for low, high in ranges)
    is_flat = all(high - low <= 1 for low, high in ranges)  # no range would show more
    if is_flat or (levels >= FEW and max(high for _, high in ranges) >= HALF):
        return None
    found, measured = [list(pair) for pair in ranges], f"{min(ranges)[0]} to {max(high for _, high in ranges)}"
    text = (
        f"the images have 16 bits, of which their samples fill {measured} (0.1st to 99.9th percentile), and the high "
        f"byte, which is what counts of a picture, only {levels} of 256 levels"
    )
    given = "" if config.channels in {None, bands} else " without --channels"
    advice = f"give --ranges '{found}'{given}"
    if config.is_private:  # these numbers would tell of the images, as part of the command and of the spec
        text, advice = "the images have 16 bits, and fill little of them", "give --ranges as the camera has them"
    if levels < FEW and not config.resume:
        raise UsageError(f"{text}; {advice}")
    return f"{text}; {advice}"


def measure_bands(files: Sequence[bytes]) -> list[tuple[int, int]]:
    """Returns width and height of each file that can be read as bands."""
    return [(samples.shape[2], samples.shape[1]) for samples in _read_all(files)]


def _takes_bands(config: TrainConfig, files: Sequence[bytes]) -> bool:
    if config.ranges is not None or config.channels is not None:
        return config.ranges is not None or config.channels not in PICTURES
    return 2 * sum(map(is_no_picture, files)) > len(files)


def _read_all(files: Sequence[bytes]) -> list[npt.NDArray[Any]]:
    """Reads samples, (bands, height, width) each, of the files that have any."""
    found = []
    for data in files:
        with suppress(ImageError):
            found.append(read_bands(data)[0])
    return found


def _measure(images: Sequence[npt.NDArray[Any]], *, is_private: bool) -> tuple[Range, ...]:
    """Returns each band's range; a private run takes all that the samples could be, as measuring would tell of them."""
    top = max(int(np.iinfo(samples.dtype).max) for samples in images)
    bands = len(images[0])
    if is_private or top == np.iinfo(np.uint8).max:
        return ((0, top),) * bands
    ranges = []
    for band in range(bands):
        values = np.concatenate([_thin(samples[band]) for samples in images])
        low, high = np.percentile(values, PERCENTILES).round().astype(int).tolist()
        ranges.append((low, max(high, low + 1)))
    return tuple(ranges)


def _thin(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values = plane.ravel()
    return values[:: max(1, len(values) // PIXELS)]
