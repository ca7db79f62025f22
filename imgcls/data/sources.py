"""Source strings: what `--data` and `--test` accept, and how each kind is opened.

    digits                      scikit-learn's handwritten digits; needs no network
    torchvision:CIFAR10         downloaded to data/torchvision where it is missing
    FOLDER  FILE.zip            class folders, or train, val and test folders of them
    FILE.csv  FILE.jsonl        rows with path, label and optionally split; paths are relative to the file
    FILE.tar  FOLDER  train-*.tar   WebDataset shards: one, a folder of nothing else, or those that match

Any of them may end in `,key=value` parts: `split=val` chooses what an evaluation reads, `split=all` everything, the
others perturb its images (imgcls.data.perturb). What reads every split as it is, such as training, takes none of them
but `split=all`.
"""

import re
from dataclasses import replace
from pathlib import Path

from imgcls.data.builtin import list_digits, list_torchvision
from imgcls.data.folders import list_folder, list_zip
from imgcls.data.images import DataSource, ImageSet
from imgcls.data.listing import SPLIT_NAMES, Entry, Listing, make_printable
from imgcls.data.perturb import parse_perturbation
from imgcls.data.shards import find_shards, list_shards
from imgcls.data.splits import SplitRule, find_drawn, keep_whole, number_classes, split_entries
from imgcls.data.tables import list_table
from imgcls.errors import DataError, UsageError

ACCEPTED = "digits, torchvision:NAME, a folder, a .zip, a .csv, a .jsonl or .tar shards"
ALL = "all"
_SETTING = re.compile(r"(?P<rest>.*),(?P<key>\w+)=(?P<value>[^,]*)", re.DOTALL)


def open_source(
    text: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    download: bool = True,
    whole: bool = False,
    plain: bool = False,
) -> DataSource:
    """Lists a source and makes its splits; decodes nothing.

    Args:
        text: a source string, as in the module's docstring.
        seed: of the splits that are drawn; the same seed and fractions draw the same splits.
        val_fraction: of the images that the source has for training.
        test_fraction: likewise, where the source has no splits.
        download: whether torchvision may download.
        whole: a source without splits is all test, unless the string chooses a split; nothing is drawn from it.
        plain: every split is read, as it is: a string that chooses one, or perturbs its images, is refused.

    Raises:
        UsageError: the text is no source, a `key=value` part is not accepted, or the fractions leave nothing.
        DataError: the source cannot be read, holds no usable images, or only one class to train on.
    """
    rule = SplitRule(seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    base, settings = _parse_settings(text)
    if plain and (idle := [key for key, value in settings.items() if (key, value) != ("split", ALL)]):
        raise UsageError(f"{text}: only an evaluation heeds {idle[0]}=, and here it would do nothing; leave it off")
    wanted = settings.pop("split", None)
    chosen = _parse_split(wanted or "test")
    perturb = parse_perturbation(settings)
    try:
        listing = make_printable(_list_base(base, download=download))
    except OSError as err:
        raise DataError(f"{base}: cannot be listed: {err}; check its permissions") from err
    try:
        entries = _require_images(listing)
        has_train_only = {entry.split for entry in entries} == {"train"}
        is_whole = chosen == ALL or (whole and wanted is None and not has_train_only)
        done = keep_whole(entries) if is_whole else split_entries(entries, rule=rule)
        classes, splits, unknown = number_classes(replace(listing, entries=tuple(done)))
        if len(classes) < 2 and "train" in splits and not is_whole:
            raise DataError(f"only one class, {classes[0]!r}; expected two or more class folders or labels")
    except DataError as err:
        raise DataError(f"{base}: {err}") from err
    if chosen == ALL:
        splits = {ALL: ImageSet(ALL, classes, tuple(each for part in splits.values() for each in part.samples))}
    drawn = () if is_whole else find_drawn(entries, done)
    return DataSource(text, classes, splits, (*listing.problems, *unknown), perturb, chosen, drawn)


def is_same_data(text: str, other: str) -> bool:
    """Tells whether two source strings name the same data, whatever their `,key=value` parts are."""
    one, two = (_parse_settings(each)[0] for each in (text, other))
    return one == two or Path(one).resolve() == Path(two).resolve()


def _parse_settings(text: str) -> tuple[str, dict[str, str]]:
    """Cuts the trailing `,key=value` parts off; a path that exists as it stands is left whole."""
    settings: dict[str, str] = {}
    while (match := _SETTING.fullmatch(text)) and not Path(text).exists():
        if match["key"] in settings:
            raise UsageError(f"{match['key']} is given twice; expected each key once")
        settings[match["key"]] = match["value"]
        text = match["rest"]
    return text, settings


def _parse_split(text: str) -> str:
    if text != ALL and text not in SPLIT_NAMES:
        raise UsageError(f"split is {text!r}; expected train, val, test or all")
    return SPLIT_NAMES.get(text, ALL)


def _list_base(base: str, *, download: bool) -> Listing:
    if base == "digits":
        return list_digits()
    if base.startswith("torchvision:"):
        return list_torchvision(base.removeprefix("torchvision:"), download=download)
    path = Path(base)
    if base and path.is_dir():  # an empty text, as of a variable of the shell that is not set, is no folder
        shards = find_shards(path)
        return list_shards(shards) if shards else list_folder(path)
    if path.suffix == ".tar" and (shards := [path] if path.is_file() else _expand(base)):
        return list_shards(shards)
    if path.is_file() and path.suffix.lower() == ".zip":
        return list_zip(path)
    if path.is_file() and path.suffix.lower() in (".csv", ".jsonl"):
        return list_table(path)
    what = f"a file of kind {path.suffix or '(none)'}" if base and path.exists() else "no such file, folder or name"
    raise UsageError(f"{base!r} is {what}; accepted as data are {ACCEPTED}")


def _expand(pattern: str) -> list[Path]:
    """Returns the files that a pattern such as shards/train-*.tar matches, in the order of their names."""
    if "{" in pattern:
        raise UsageError(f"{pattern!r} has braces, which are not expanded; write such as train-*.tar, or the folder")
    return sorted(Path(pattern).parent.glob(Path(pattern).name))


def _require_images(listing: Listing) -> tuple[Entry, ...]:
    if listing.entries:
        return listing.entries
    first = listing.problems[0] if listing.problems else None
    more = f" ({len(listing.problems)} refused, first {first.name}: {first.reason})" if first else ""
    raise DataError(f"no labelled images{more}; put images in one folder a class, such as cats/1.jpg and dogs/2.jpg")
