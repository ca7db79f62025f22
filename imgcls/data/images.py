"""The nouns of this room: a labelled image, a split, a file that cannot be used, and a source."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from PIL.Image import Image

from imgcls.errors import DataError
from model.bands import Bands

SPLITS = ("train", "val", "test")

Perturb = Callable[[Image | Bands, int], Image | Bands]  # by a seed, to the same size and mode


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        name: its path inside the source, or such as "digits/0017"; what a report names.
        label: index into the classes of its ImageSet.
        read: returns the encoded file; raises OSError where it cannot be read. Can be pickled.
        columns: what else a table says of it, to slice a test set by.
    """

    name: str
    label: int
    read: Callable[[], bytes]
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSet:
    """One split: "train", "val" or "test"."""

    name: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.samples)

    def count_classes(self) -> dict[str, int]:
        """Returns the number of samples of each class, zeros included, in the order of the classes."""
        counts = dict.fromkeys(self.classes, 0)
        for sample in self.samples:
            counts[self.classes[sample.label]] += 1
        return counts


@dataclass(frozen=True)
class Problem:
    """What cannot be used, and why: a file that is corrupt, empty or unlabelled, or all files of an unknown class.

    Attributes:
        name: of the file, or of the class within its split.
        reason: in words.
        files: how many files are left out for it.
    """

    name: str
    reason: str
    files: int = 1

    def __str__(self) -> str:
        """Says it in one line; what a terminal would act on, as a file's name may hold, is spelt out."""
        text = f"{self.name}: {self.reason}"
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def count_files(problems: Iterable[Problem]) -> int:
    """Returns how many files are left out for these problems."""
    return sum(problem.files for problem in problems)


@dataclass(frozen=True)
class DataSource:
    """What a source string stands for.

    Attributes:
        text: the string as the user wrote it.
        classes: sorted; the same for every split.
        splits: one to three of train, val and test, in this order; only "all" where the string says `split=all`.
        problems: what was found while listing; nothing has been decoded yet.
        perturb: changes a decoded image, from the string's `noise=…` and the like; the int is a seed for each sample.
        chosen: the split that an evaluation reads, from the string's `split=…`.
        drawn: the splits of which the source does not say itself which images they hold.
    """

    text: str
    classes: tuple[str, ...]
    splits: dict[str, ImageSet]
    problems: tuple[Problem, ...]
    perturb: Perturb | None
    chosen: str = "test"
    drawn: tuple[str, ...] = ()

    def require(self, *splits: str) -> None:
        """Raises DataError where one of these splits is not there."""
        for split in splits:
            if split not in self.splits:
                raise DataError(
                    f"{self.text}: has no {split} split, but {', '.join(self.splits)}; give a folder with train/, or "
                    "one folder a class"
                )
