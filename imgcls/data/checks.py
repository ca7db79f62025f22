"""Warnings about a source that opens well and still misleads: missing classes, and test images seen in training."""

import hashlib
from itertools import combinations

from imgcls.data.images import DataSource, ImageSet, Sample
from imgcls.data.progress import show_progress

_NAMED = 3  # how many classes or files a warning names


def check_source(source: DataSource) -> list[str]:
    """Returns one line for each finding; reads every file once where there is more than one split."""
    return [*_find_missing_classes(source), *_find_shared_images(source)]


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


def _find_shared_images(source: DataSource) -> list[str]:
    if len(source.splits) < 2:
        return []
    names = {split: _hash_images(images) for split, images in source.splits.items()}
    warnings = []
    for one, other in combinations(names, 2):
        shared = [f"{names[one][key]} = {names[other][key]}" for key in names[one] if key in names[other]]
        if shared:
            warnings.append(f"{one} and {other} share {_count_images(shared)}, byte for byte: {_shorten(shared)}")
    return warnings


def _hash_images(images: ImageSet) -> dict[str, str]:
    """Returns the name of the first sample with each SHA-256; unreadable and empty files are no finding here."""
    named: dict[str, str] = {}
    for sample in show_progress(images.samples, f"comparing {images.name}", total=len(images)):
        if data := _read(sample):
            named.setdefault(hashlib.sha256(data).hexdigest(), sample.name)
    return named


def _read(sample: Sample) -> bytes:
    try:
        return sample.read()
    except OSError:
        return b""


def _count_images(shared: list[str]) -> str:
    return "1 image" if len(shared) == 1 else f"{len(shared)} images"


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
