"""Images that look alike: perceptual hashes (ImageHash) that differ in a few of their 64 bits.

CleanVision demands equal hashes, which a recompressed copy often misses by a bit or two. Every pair is compared, as 64
bits are one machine word: the pairs of 50,000 images take 12 s on one busy x86 core. Hashes of unrelated images differ
in about 32 bits.
"""

from collections.abc import Sequence

import imagehash
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imgcls.care.examine import Examined
from imgcls.data.progress import show_progress

MOST_BITS = 4
_CHUNK = 512  # hashes compared with all others at a time


def find_similar(images: Sequence[Examined], *, progress: bool = True) -> list[list[int]]:
    """Returns groups of places, each joined by pairs that look alike."""
    hashes = np.array([_hash(image) for image in show_progress(images, "hashing", total=len(images), show=progress)])
    rows, columns = _find_pairs(hashes)
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(images), len(images)))
    _, group_of = connected_components(graph, directed=False)
    order = np.argsort(group_of, kind="stable")
    _, starts = np.unique(group_of[order], return_index=True)
    return [[int(place) for place in group] for group in np.split(order, starts[1:]) if len(group) > 1]


def _hash(image: Examined) -> np.uint64:
    bits = imagehash.phash(image.open()).hash.reshape(-1)
    return np.uint64(np.packbits(bits).view(np.uint64)[0])


def _find_pairs(hashes: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    rows, columns = [], []
    for start in range(0, len(hashes), _CHUNK):
        bits = np.bitwise_count(hashes[start : start + _CHUNK, None] ^ hashes[None, start:])
        found = np.argwhere(bits <= MOST_BITS) + start
        rows.append(found[:, 0])
        columns.append(found[:, 1])
    return np.concatenate(rows), np.concatenate(columns)
