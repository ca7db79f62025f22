"""Warnings about a source that opens well and still misleads: missing classes, and test images seen in training."""

import hashlib
from collections.abc import Sequence
from itertools import combinations

from imgcls.data.digests import Digests
from imgcls.data.images import DataSource, ImageSet

_NAMED = 3  # how many classes or files a warning names
_EMPTY = hashlib.sha256().digest()


def check_source(source: DataSource, digests: Digests) -> list[str]:
    """Returns one line for each finding; `digests` are those of `hash_source`."""
    return [*_find_missing_classes(source), *_find_shared_images(source, digests)]


def _find_missing_classes(source: DataSource) -> list[str]:
    missing = {
        split: [name for name, count in images.count_classes().items() if count == 0]
        for split, images in source.splits.items()
    }
    return [
        f"{split}: no image of {len(names)} of {len(source.classes)} classes: {_shorten(names)}"
        for split, names in missing.items()
        if names
    ]


def _find_shared_images(source: DataSource, digests: Digests) -> list[str]:
    names = {split: _name_images(images, digests[split]) for split, images in source.splits.items()}
    warnings = []
    for one, other in combinations(names, 2):
        shared = [f"{names[one][key]} = {names[other][key]}" for key in names[one] if key in names[other]]
        if shared:
            warnings.append(f"{one} and {other} share {_count_images(shared)}, byte for byte: {_shorten(shared)}")
    return warnings


def _name_images(images: ImageSet, digests: Sequence[bytes | None]) -> dict[bytes, str]:
    """Returns the name of the first sample with each digest; unreadable and empty files are no finding here."""
    named: dict[bytes, str] = {}
    for sample, digest in zip(images.samples, digests, strict=True):
        if digest not in (None, _EMPTY):
            named.setdefault(digest, sample.name)
    return named


def _count_images(shared: list[str]) -> str:
    return "1 image" if len(shared) == 1 else f"{len(shared)} images"


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
