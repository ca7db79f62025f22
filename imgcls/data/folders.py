"""Folders of class folders, with or without split folders above them, on disk or inside a zip.

    cats/1.jpg  dogs/2.jpg                      no splits
    train/cats/1.jpg  test/dogs/2.jpg           with splits; validation may be named val, valid or validation

What lies deeper in a class folder belongs to the class. Hidden files and what operating systems leave are ignored; any
other file that cannot be used is a problem with a name and a reason.
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
    """The visible files (their path inside the tree, and how to read them) and folders of a source."""

    files: Mapping[PurePosixPath, Callable[[], bytes]]
    folders: tuple[PurePosixPath, ...]


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
        names = [PurePosixPath(name) for name in reader.names() if not name.endswith("/")]
    except OSError as err:
        raise DataError(f"{path}: {err}; expected a zip of class folders, so make it again") from err
    files = {name: partial(reader.read, str(name)) for name in sorted(names) if is_visible(name)}
    return list_tree(Tree(files, ()))


def list_tree(tree: Tree) -> Listing:
    """Lists either layout; an only top folder around it is stepped into."""
    depth = _count_wrappers(tree)
    split_depth = 1 if _has_splits(tree, depth) else 0
    entries: list[Entry] = []
    problems = _find_empty_classes(tree, depth=depth + split_depth + 1)
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
    for folder in _walk(root, seen=set()):
        inside = PurePosixPath(folder.relative_to(root).as_posix())
        folders.append(inside)
        for path in sorted(folder.iterdir()):
            if path.is_file() and is_visible(inside / path.name):
                files[inside / path.name] = path.read_bytes
    return Tree(files, tuple(folders))


def _walk(folder: Path, *, seen: set[str]) -> Iterator[Path]:
    """Yields a folder and the visible ones below it; links are followed, but never twice to the same place."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    yield folder
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
