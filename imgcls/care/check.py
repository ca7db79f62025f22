"""Makes the data report: examines the source once, then asks each search in turn."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from imgcls.care.examine import Examined, examine
from imgcls.care.findings import DataReport, Finding, ImageFacts, Kind, Shown, SplitFacts
from imgcls.care.labels import find_label_issues
from imgcls.care.pictures import find_pictures, is_searched
from imgcls.data.images import DataSource, Problem
from imgcls.data.sources import is_same_data, open_source
from imgcls.errors import DataError, UsageError
from imgcls.evaluation.gallery import encode_thumbnail
from model.errors import ImageError

SHOWN = 24  # findings of each kind that get pictures
MOST_IN_GROUP = 6
FEW = 10  # times fewer images than the largest class: told as imbalance


def check_data(
    text: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    run: Path | None = None,
    labels: bool = True,
    progress: bool = True,
) -> DataReport:
    """Checks all splits of a source, and adds small pictures of the first findings of each kind.

    Args:
        text: a source string.
        seed: of splits that are drawn, as train.py's.
        val_fraction: likewise.
        test_fraction: likewise.
        run: a run to ask about labels.
        labels: whether to look for suspicious labels.
        progress: show bars on a terminal.

    Raises:
        UsageError, DataError: the source cannot be used, or not one image can be decoded; or its splits are drawn
            otherwise than the run drew them.
        RunError, ModelError: the run cannot be used, or answers with NaN or infinity.
    """
    source = open_source(text, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, plain=True)
    if run and labels:
        _refuse_seen(source, run, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    images, problems = examine(source, progress=progress)
    if not images:
        first = problems[0][1]
        raise DataError(f"{text}: no image can be decoded, first {first.name}: {first.reason}")
    pictured, notes = find_pictures(images, progress=progress)
    findings = [*_list_corrupt(problems), *_find_missing(source, images), *_find_uneven(images), *pictured]
    suspects: list[Finding] | None = None
    if labels:
        suspects, told = find_label_issues(images, source.classes, run=run, progress=progress)
        findings, notes = [*findings, *(suspects or [])], [*notes, *told]
    report = DataReport(
        source=text,
        classes=list(source.classes),
        splits={name: _count(name, source, images) for name in source.splits},
        images=_describe(images),
        findings=findings,
        labels_checked=suspects is not None,
        looks_checked=any(map(is_searched, images)),
        notes=notes if labels else [*notes, "labels were not checked: it was not asked for"],
    )
    return _add_pictures(report, images)


def _refuse_seen(source: DataSource, run: Path, *, seed: int, val_fraction: float, test_fraction: float) -> None:
    """Raises UsageError where a run would be asked about images that it was trained on, as its splits were others."""
    from imgcls.evaluation.run import read_run_data  # here, because torch costs seconds

    config = read_run_data(run)
    asked, had = (seed, val_fraction, test_fraction), (config.seed, config.val_fraction, config.test_fraction)
    if source.drawn and config.data and is_same_data(source.text, config.data) and asked != had:
        flags = f"--seed {config.seed} --val-fraction {config.val_fraction} --test-fraction {config.test_fraction}"
        raise UsageError(f"{run}: was trained on other splits of {source.text}; to ask it give {flags}")


def _add_pictures(report: DataReport, images: Sequence[Examined]) -> DataReport:
    by_name = {(image.split, image.sample.name): image for image in images}
    seen: Counter[Kind] = Counter()
    findings = []
    for finding in report.findings:
        seen[finding.kind] += 1
        few = MOST_IN_GROUP if seen[finding.kind] <= SHOWN else 0
        pictures = [_add_picture(each, by_name) for each in finding.images[:few]]
        findings.append(finding.model_copy(update={"images": [*pictures, *finding.images[few:]]}))
    return report.model_copy(update={"findings": findings})


def _add_picture(shown: Shown, images: Mapping[tuple[str, str], Examined]) -> Shown:
    image = images.get((shown.split, shown.name))
    try:
        return shown.model_copy(update={"image": encode_thumbnail(image.open())}) if image else shown
    except (ImageError, OSError):  # it went away, or was changed, since it was examined
        return shown


def _list_corrupt(problems: Sequence[tuple[str, Problem]]) -> list[Finding]:
    return [
        Finding(
            kind="corrupt",
            detail=f"{problem.name}: {problem.reason}",
            images=[Shown(name=problem.name, split=split, label="")],
        )
        for split, problem in problems
    ]


def _find_missing(source: DataSource, images: Sequence[Examined]) -> list[Finding]:
    counts = Counter((image.split, image.label) for image in images)
    return [
        Finding(kind="missing-classes", detail=f"{split} has no image of {name}", images=[])
        for split in source.splits
        for name in source.classes
        if not counts[split, name]
    ]


def _find_uneven(images: Sequence[Examined]) -> list[Finding]:
    """Compares the classes of the training images, or of all where there are none."""
    trained = [image for image in images if image.split == "train"] or images
    counts = Counter(image.label for image in trained)
    [(largest, most)] = counts.most_common(1)
    return [
        Finding(kind="imbalance", detail=f"{name} has {count:,} images, {largest} has {most:,}", images=[])
        for name, count in sorted(counts.items(), key=lambda item: item[1])
        if count * FEW < most
    ]


def _count(split: str, source: DataSource, images: Sequence[Examined]) -> SplitFacts:
    counts = Counter(image.label for image in images if image.split == split)
    return SplitFacts(images=counts.total(), classes={name: counts[name] for name in source.classes})


def _describe(images: Sequence[Examined]) -> ImageFacts:
    return ImageFacts(
        modes=dict(Counter(image.mode for image in images).most_common()),
        formats=dict(Counter(image.format for image in images).most_common()),
        widths=_spread([image.width for image in images]),
        heights=_spread([image.height for image in images]),
        median_bytes=round(statistics.median(image.size_bytes for image in images)),
    )


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    return min(values), round(statistics.median(values)), max(values)
