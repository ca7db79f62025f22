"""From a listing to train, val and test: classes are numbered, missing splits are drawn, seeded and stratified.

A source with its own train and test keeps them; val is drawn from train where it is missing. A source without splits is
drawn into three. A source of test images only stays one. An evaluation may take a source without splits as test, whole.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from imgcls.data.images import SPLITS, ImageSet, Problem, Sample
from imgcls.data.listing import Entry, Listing
from imgcls.errors import DataError, UsageError


@dataclass(frozen=True)
class SplitRule:
    """How missing splits are drawn; the fractions are of all images that the source has for training."""

    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.15

    def __post_init__(self) -> None:
        """Raises UsageError where the fractions leave nothing to train on, or the seed is none."""
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}; expected a whole number from 0 to {2**32 - 1}")
        fractions = (self.val_fraction, self.test_fraction)
        if not (min(fractions) >= 0 and sum(fractions) < 1):  # nan is refused too
            got = f"val_fraction is {self.val_fraction} and test_fraction {self.test_fraction}"
            raise UsageError(f"{got}; expected each at least 0 and their sum below 1")


def split_entries(entries: Sequence[Entry], *, rule: SplitRule) -> list[Entry]:
    """Returns the entries in the order of their names, each with its split.

    Raises:
        DataError: a class has too few images to be drawn from.
    """
    ordered = sorted(entries, key=lambda entry: entry.name)
    given = {entry.split for entry in ordered}
    if given <= {None} or given == {"train"}:
        return _draw_three(ordered, rule=rule)
    if given == {"train", "test"}:
        return _draw(ordered, "val", fraction=rule.val_fraction, seed=rule.seed)
    return ordered


def keep_whole(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the entries in the order of their names, none drawn: what has no split is test."""
    return [replace(entry, split=entry.split or "test") for entry in sorted(entries, key=lambda entry: entry.name)]


def find_drawn(before: Sequence[Entry], after: Sequence[Entry]) -> tuple[str, ...]:
    """Returns the splits that hold other images than the source itself says."""
    given, made = (Counter(entry.split for entry in entries) for entries in (before, after))
    return tuple(split for split in SPLITS if given[split] != made[split])


def number_classes(listing: Listing) -> tuple[tuple[str, ...], dict[str, ImageSet], list[Problem]]:
    """Numbers the classes of a listing whose entries all have a split.

    Train's classes count where there is a train split; images of other classes become a problem for each class.

    Returns:
        The sorted classes, the splits, and the problems.
    """
    trained = [entry for entry in listing.entries if entry.split == "train"]
    classes = tuple(sorted({entry.class_name for entry in trained or listing.entries}))
    index = {name: position for position, name in enumerate(classes)}
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    unknown: Counter[tuple[str, str]] = Counter()
    for entry in listing.entries:
        split = entry.split or "test"
        if entry.class_name in index:
            samples[split].append(Sample(entry.name, index[entry.class_name], entry.read, entry.columns))
        else:
            unknown[split, entry.class_name] += 1
    splits = {name: ImageSet(name, classes, tuple(found)) for name, found in samples.items() if found}
    return classes, splits, [_describe_unknown(*key, count=count) for key, count in unknown.items()]


def _describe_unknown(split: str, class_name: str, *, count: int) -> Problem:
    reason = f"class {class_name!r} is not in train; its {count} images are left out"
    return Problem(f"{split}/{class_name}", reason, files=count)


def _draw_three(entries: list[Entry], *, rule: SplitRule) -> list[Entry]:
    train = [replace(entry, split="train") for entry in entries]
    with_test = _draw(train, "test", fraction=rule.test_fraction, seed=rule.seed)
    return _draw(with_test, "val", fraction=rule.val_fraction / (1 - rule.test_fraction), seed=rule.seed)


def _draw(entries: list[Entry], split: str, *, fraction: float, seed: int) -> list[Entry]:
    """Moves a stratified fraction of the train entries to `split`."""
    if fraction == 0:
        return entries
    pool = [position for position, entry in enumerate(entries) if entry.split == "train"]
    names = [entries[position].class_name for position in pool]
    _require_enough(names, split)
    classes = len(set(names))
    size = min(max(round(fraction * len(pool)), classes), len(pool) - classes)  # fewer cannot be stratified
    from sklearn.model_selection import train_test_split  # here, because it costs seconds

    _, drawn = train_test_split(pool, test_size=size, random_state=seed, stratify=names)
    chosen = set(drawn)
    return [replace(entry, split=split) if place in chosen else entry for place, entry in enumerate(entries)]


def _require_enough(names: list[str], split: str) -> None:
    name, count = min(Counter(names).items(), key=lambda item: (item[1], item[0]))
    if count < 2:
        raise DataError(
            f"class {name!r} has {count} image left to draw {split} from; expected at least 2, so add images to it "
            "or bring train, val and test folders of your own"
        )
