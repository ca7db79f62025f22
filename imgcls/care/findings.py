"""The nouns of a data report."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal[
    "corrupt",
    "missing-classes",
    "imbalance",
    "leaks",
    "near-leaks",
    "conflicts",
    "duplicates",
    "near-duplicates",
    "labels",
    "odd",
]
MEANING: dict[Kind, str] = {
    "corrupt": "files that cannot be decoded or read as labelled images",
    "missing-classes": "classes of which a split has no image",
    "imbalance": "classes with less than a tenth of the images of the largest",
    "leaks": "the same image in two splits: a test that asks what was learnt by heart",
    "near-leaks": "images of two splits that look alike",
    "conflicts": "the same image under two labels",
    "duplicates": "the same image more than once within a split",
    "near-duplicates": "images of one split that look alike",
    "labels": "labels that a model, which has not seen the image, does not believe",
    "odd": "images that are dark, bright, blurred, empty, or of an odd size or shape",
}

LOOKS: tuple[Kind, ...] = ("near-leaks", "near-duplicates", "odd")  # that only larger images are searched for


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shown(_Part):
    """One image of a finding; `image` is a small picture as a data URI, empty where there is none to show."""

    name: str
    split: str
    label: str
    note: str = ""
    image: str = ""


class Finding(_Part):
    """What was found of one kind: images that belong together, or one alone; `detail` says it in words."""

    kind: Kind
    detail: str
    images: list[Shown]


class SplitFacts(_Part):
    """One split: its images by class, the undecodable ones left out."""

    images: int
    classes: dict[str, int]


class ImageFacts(_Part):
    """What the images are: counts by mode and format; smallest, median and largest width and height, in pixels."""

    modes: dict[str, int]
    formats: dict[str, int]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    median_bytes: int


class DataReport(_Part):
    """The whole answer; `notes` say what was not looked for, and why, or how.

    `looks_checked` says whether any image was large enough to be searched for the kinds of LOOKS.
    """

    source: str
    classes: list[str]
    splits: dict[str, SplitFacts]
    images: ImageFacts
    findings: list[Finding]
    labels_checked: bool
    looks_checked: bool
    notes: list[str]

    def count(self, kind: Kind) -> int:
        """Returns how many findings of a kind there are."""
        return sum(finding.kind == kind for finding in self.findings)

    def is_checked(self, kind: Kind) -> bool:
        """Tells whether a kind was looked for at all."""
        return self.labels_checked if kind == "labels" else self.looks_checked or kind not in LOOKS
