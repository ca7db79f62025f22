"""Folders of class folders, with or without split folders above them, on disk or inside a zip.

    cats/1.jpg  dogs/2.jpg                      no splits
    train/cats/1.jpg  test/dogs/2.jpg           with splits; validation may be named val, valid or validation

What lies deeper in a class folder belongs to the class. Hidden files and what operating systems leave are ignored; any
other file that cannot be used is a problem with a name and a reason. So is a link to a folder that is read already, but
for one that only leads back to a folder around it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from imgcls.data.images import Problem
from imgcls.data.listing import IMAGE_SUFFIXES, SPLIT_NAMES, Entry, Listing, is_visible
from imgcls.data.zips import ZipReader
from imgcls.errors import DataError


@dataclass(frozen=True)
class Tree:
    """The visible files (their path inside it, and how to read them) and folders of a source, and what is neither."""

    files: Mapping[PurePosixPath, Callable[[], bytes]]
    folders: tuple[PurePosixPath, ...]
    problems: tuple[Problem, ...] = ()


def list_folder(root: Path) -> Listing:
    """Lists a folder of class folders or of split folders."""
    return list_tree(_walk_folder(root))


def list_zip(path: Path) -> Listing:
    """Lists the same layouts inside a zip.

    Raises:
        DataError: the file is no zip.
    """
    reader = ZipReader(path)
    try:
        names = sorted(reader.names(), key=PurePosixPath)
    except OSError as err:
        raise DataError(f"{path}: {err}; expected a zip of class folders, so make it again") from err
    visible = [(name, PurePosixPath(name)) for name in names if is_visible(PurePosixPath(name))]
    files = {inside: partial(reader.read, name) for name, inside in visible if not name.endswith("/")}
    return list_tree(Tree(files, tuple(inside for name, inside in visible if name.endswith("/"))))


def list_tree(tree: Tree) -> Listing:
    """Lists either layout; an only top folder around it is stepped into."""
    depth = _count_wrappers(tree)
    split_depth = 1 if _has_splits(tree, depth) else 0
    entries: list[Entry] = []
    problems = [*tree.problems, *_find_empty_classes(tree, depth=depth + split_depth + 1)]
    for path, read in tree.files.items():
        found = _classify(path, read, depth=depth, split_depth=split_depth)
        if isinstance(found, Entry):
            entries.append(found)
        else:
            problems.append(found)
    return Listing(tuple(entries), tuple(problems))


def _classify(path: PurePosixPath, read: Callable[[], bytes], *, depth: int, split_depth: int) -> Entry | Problem:
    """Returns the file as a labelled image, or why it is none."""
    parts = path.parts[depth:]
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return Problem(str(path), f"not an image file; expected one of {', '.join(IMAGE_SUFFIXES)}")
    if split_depth and len(parts) > 1 and parts[0].lower() not in SPLIT_NAMES:
        return Problem(str(path), f"not in a split folder; expected one of {', '.join(SPLIT_NAMES)}")
    if len(parts) < split_depth + 2:
        return Problem(str(path), "unlabelled: it lies beside the class folders, not in one")
    split = SPLIT_NAMES[parts[0].lower()] if split_depth else None
    return Entry(str(path), parts[split_depth], split, read)


def _walk_folder(root: Path) -> Tree:
    files: dict[PurePosixPath, Callable[[], bytes]] = {}
    folders: list[PurePosixPath] = []
    problems: list[Problem] = []
    again: dict[PurePosixPath, PurePosixPath] = {}
    for folder, first in _walk(root, seen={}):
        inside = _place(folder, root)
        if first:
            again[inside] = _place(first, root)
            continue
        folders.append(inside)
        for path in sorted(folder.iterdir()):
            name = inside / path.name
            if not is_visible(name) or path.is_dir():
                continue
            if path.is_file():
                files[name] = path.read_bytes
            else:
                what = "a link that leads to no file" if path.is_symlink() else "a pipe, socket or device"
                problems.append(Problem(str(name), f"{what}; expected an image"))
    for link, target in again.items():
        reason = f"a link to what is read as {target} already; its images are left out: copy it to have them twice"
        problems.append(Problem(str(link), reason, files=sum(name.is_relative_to(target) for name in files)))
    return Tree(files, tuple(folders), tuple(problems))


def _place(folder: Path, root: Path) -> PurePosixPath:
    return PurePosixPath(folder.relative_to(root).as_posix())


def _walk(folder: Path, *, seen: dict[str, Path]) -> Iterator[tuple[Path, Path | None]]:
    """Yields a folder and the visible ones below it; links are followed, but never twice to the same place.

    Beside one that was met before stands where; a link that leads back to a folder around it is left out.
    """
    real = os.path.realpath(folder)
    if real in seen:
        if not Path(os.path.realpath(folder.parent)).is_relative_to(real):
            yield folder, seen[real]
        return
    seen[real] = folder
    yield folder, None
    for path in sorted(folder.iterdir()):
        if path.is_dir() and is_visible(PurePosixPath(path.name)):
            yield from _walk(path, seen=seen)


def _count_wrappers(tree: Tree) -> int:
    """Returns how many folders wrap the layout: as long as one holds everything, and no image beside a folder."""
    images = [path.parts for path in tree.files if _is_image(path)]
    depth = 0
    while (
        len({parts[depth] for parts in images}) == 1
        and all(len(parts) > depth + 2 for parts in images)
        and images[0][depth].lower() not in SPLIT_NAMES
    ):
        depth += 1
    return depth


def _has_splits(tree: Tree, depth: int) -> bool:
    """Tells split folders from a class that is named so ("train", a vehicle): only the former hold class folders."""
    return any(
        len(path.parts) >= depth + 3 and path.parts[depth].lower() in SPLIT_NAMES and _is_image(path)
        for path in tree.files
    )


def _is_image(path: PurePosixPath) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _find_empty_classes(tree: Tree, *, depth: int) -> list[Problem]:
    used = {path.parts[:depth] for path in tree.files if _is_image(path)}
    empty = [folder for folder in tree.folders if len(folder.parts) == depth and folder.parts not in used]
    return [Problem(str(folder), "a class folder without images") for folder in empty]
