"""Odd images, by CleanVision, and duplicates; which of these cross splits or labels."""

import contextlib
import io
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image

from imgcls.care.examine import Examined
from imgcls.care.findings import Finding, Kind, Shown
from imgcls.care.similar import find_similar

ODD = ("dark", "light", "blurry", "low_information", "odd_aspect_ratio", "odd_size")
SMALLEST_SIDE = 24  # below, a perceptual hash of 32 x 32 pixels and a measure of blur say nothing
_WORDS = {
    "dark": "dark",
    "light": "bright",
    "blurry": "blurred",
    "low_information": "nearly empty",
    "odd_aspect_ratio": "of an odd shape",
    "odd_size": "of an odd size",
}


class _Pictures:
    """What CleanVision reads: anything with a length whose items are tuples with a picture."""

    def __init__(self, images: Sequence[Examined]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._images[index].open(), 0


def find_pictures(images: Sequence[Examined], *, progress: bool = True) -> tuple[list[Finding], list[str]]:
    """Finds odd images, duplicates, leaks and conflicting labels.

    Returns:
        The findings, and notes on what was not looked for.
    """
    exact = _group(images, range(len(images)), [image.sha256 for image in images])
    findings = [finding for group in exact for finding in _describe_group(images, group, is_exact=True)]
    large = [place for place, image in enumerate(images) if is_searched(image)]
    notes = []
    if len(large) < len(images):
        count = len(images) - len(large)
        notes.append(
            f"{count:,} images have a side below {SMALLEST_SIDE} pixels: they were not searched for odd ones and "
            "look-alikes"
        )
    if large:
        chosen = [images[place] for place in large]
        near, odd = find_similar(chosen, progress=progress), _find_odd(chosen)
        for members in near:
            group = _drop_exact(images, [large[place] for place in members])
            if len({images[place].sha256 for place in group}) > 1:
                findings += _describe_group(images, group, is_exact=False)
        findings += [_describe_odd(images[large[place]], words) for place, words in sorted(odd.items())]
    return findings, notes


def is_searched(image: Examined) -> bool:
    """Tells whether an image is large enough to be searched for odd ones and look-alikes."""
    return min(image.width, image.height) >= SMALLEST_SIDE


def _find_odd(images: Sequence[Examined]) -> dict[int, list[str]]:
    """Asks CleanVision what is odd about which image."""
    from cleanvision import Imagelab

    issues: dict[str, dict[str, float]] = {name: {} for name in ODD}
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bars):  # it prints advice too
        lab = Imagelab(torchvision_dataset=_Pictures(images))
        lab.find_issues(issues, n_jobs=1, verbose=False)
    odd: dict[int, list[str]] = defaultdict(list)
    for name in ODD:
        for place in lab.issues.index[lab.issues[f"is_{name}_issue"]]:
            odd[int(place)].append(_WORDS[name])
    return dict(odd)


def _group(images: Sequence[Examined], places: Iterable[int], keys: Sequence[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for place, key in zip(places, keys, strict=True):
        groups[key].append(place)
    return [group for group in groups.values() if len(group) > 1]


def _drop_exact(images: Sequence[Examined], group: Sequence[int]) -> list[int]:
    """Keeps one a split of each set of equal images, as these are a finding of their own."""
    kept: dict[tuple[str, str], int] = {}
    for place in group:
        kept.setdefault((images[place].sha256, images[place].split), place)
    return list(kept.values())


def _describe_group(images: Sequence[Examined], places: Sequence[int], *, is_exact: bool) -> Iterator[Finding]:
    """Tells what a group of equal or similar images is: a leak, a conflict, both, or no more than copies."""
    members = [images[place] for place in places]
    splits, labels = {each.split for each in members}, {each.label for each in members}
    how = "the same" if is_exact else "alike"
    detail = f"{len(members)} images are {how}, in {_join(splits)}, labelled {_join(labels)}"
    kinds: list[Kind] = []
    if len(splits) > 1:
        kinds.append("leaks" if is_exact else "near-leaks")
    if len(labels) > 1 and is_exact:
        kinds.append("conflicts")
    for kind in kinds or ["duplicates" if is_exact else "near-duplicates"]:
        yield Finding(kind=kind, detail=detail, images=[show(each) for each in members])


def _describe_odd(image: Examined, words: Sequence[str]) -> Finding:
    return Finding(kind="odd", detail=", ".join(words), images=[show(image, note=f"{image.width} x {image.height}")])


def show(image: Examined, *, note: str = "") -> Shown:
    """Returns an image as a finding names it; its picture is made later, for those that are shown."""
    return Shown(name=image.sample.name, split=image.split, label=image.label, note=note)


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
