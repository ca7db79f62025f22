"""Any source as tar shards that `imgcls.data.shards` and the package webdataset read: few files of a chosen size.

    000000000.png  000000000.cls  000000000.json      the image as it is; its class's number; label, path and columns

Each split has shards of its own, in an order drawn by the seed, as readers that stream want it. Images keep their bytes
and names, so that training sees the same as from the source. The folder appears whole, or not at all.
"""

import io
import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from imgcls.data.decoding import decode_any
from imgcls.data.images import DataSource, ImageSet, Problem, Sample, count_files
from imgcls.data.listing import IMAGE_SUFFIXES
from imgcls.data.progress import show_progress
from imgcls.errors import DataError, UsageError
from imgcls.files import sync, write_atomic
from imgcls.scratch import ScratchFolder
from model.errors import ImageError

_BLOCK_BYTES = 512
_RECORD_BYTES = tarfile.RECORDSIZE  # a tar ends with two blocks of zeros, and more up to a whole record
_KINDS = {"jpe": "jpg", "jfif": "jpg"}  # other names of JPEG, which other readers do not know
_Files = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Shards:
    """What was written: the shards and images of each split, and what was left out."""

    folder: Path
    shards: dict[str, int]
    images: dict[str, int]
    problems: tuple[Problem, ...]


def write_shards(
    source: DataSource, folder: Path, *, size_bytes: int, seed: int = 0, strict: bool = False, progress: bool = True
) -> Shards:
    """Writes a source into a new folder of shards of at most `size_bytes`, or of one image where that is larger.

    Raises:
        UsageError: the folder is there, the size is no size of a shard, or the source perturbs its images.
        DataError: nothing could be read, or, where strict, something could not be read or decoded.
        OSError: the folder cannot be written.
    """
    if source.perturb:
        raise UsageError(f"{source.text}: perturbs its images, and shards hold them as they are; leave that part off")
    if folder.exists():
        raise UsageError(f"{folder}: is there already; remove it, or give another folder")
    if size_bytes <= _RECORD_BYTES:
        raise UsageError(f"--size is {size_bytes} bytes; expected more than {_RECORD_BYTES}, such as 500MB")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ScratchFolder("shards", root=folder.parent) as scratch:
        temporary = Path(scratch) / folder.name
        temporary.mkdir()
        shards, images, problems = {}, {}, list(source.problems)
        for name, split in source.splits.items():
            writer = _Writer(temporary, name, size_bytes=size_bytes)
            for files in _pack_split(split, problems, seed=seed, strict=strict, progress=progress):
                writer.add(files)
            writer.close()
            shards[name], images[name] = writer.shards, writer.samples
        if problems and (strict or not sum(images.values())):
            first = f"{problems[0].name}: {problems[0].reason}"
            raise DataError(f"{count_files(problems)} files cannot be used, first {first}; nothing was written")
        write_atomic(temporary / "classes.json", json.dumps(source.classes, indent=1) + "\n")
        temporary.rename(folder)
    sync(folder.parent)
    return Shards(folder, shards, images, tuple(problems))


def _pack_split(
    images: ImageSet, problems: list[Problem], *, seed: int, strict: bool, progress: bool
) -> Iterator[_Files]:
    """Yields each sample's files in a drawn order; what cannot be read, or where strict decoded, is a problem."""
    samples = random.Random(seed).sample(images.samples, len(images))
    shown = show_progress(samples, f"writing {images.name}", total=len(images), show=progress)
    for number, sample in enumerate(shown):
        try:
            data = sample.read()
            if strict:
                decode_any(data)
            yield _pack(sample, data, key=f"{number:09}", class_name=images.classes[sample.label])
        except (OSError, ImageError) as err:
            problems.append(Problem(sample.name, str(err)))


def _pack(sample: Sample, data: bytes, *, key: str, class_name: str) -> _Files:
    fields = {"label": class_name, "path": sample.name, **sample.columns}
    return [
        (f"{key}.{_find_kind(sample.name, data)}", data),
        (f"{key}.cls", str(sample.label).encode()),
        (f"{key}.json", json.dumps(fields).encode()),
    ]


def _find_kind(name: str, data: bytes) -> str:
    """Returns the ending of an image's name, or, where that is none of an image, what Pillow takes it for.

    Raises:
        OSError: Pillow takes it for nothing that is accepted.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        try:
            with Image.open(io.BytesIO(data)) as image:
                suffix = f".{image.format}".lower()
        except (OSError, MemoryError):
            raise
        except Image.DecompressionBombError as err:
            raise OSError(str(err)) from err
        except Exception as err:  # a header is as hostile as the rest, and Pillow raises what it meets
            raise OSError(f"the image's header is broken: {err}") from err
    if suffix not in IMAGE_SUFFIXES:
        raise OSError(f"is of kind {suffix}; expected one of {', '.join(IMAGE_SUFFIXES)}")
    kind = suffix.removeprefix(".")
    return _KINDS.get(kind, kind)


class _Writer:
    """Writes the shards of one split, one after another; equal samples make equal bytes."""

    def __init__(self, folder: Path, split: str, *, size_bytes: int) -> None:
        self.shards = 0
        self.samples = 0
        self._folder = folder
        self._split = split
        self._limit = size_bytes // _RECORD_BYTES * _RECORD_BYTES - 2 * _BLOCK_BYTES  # where the zeros begin
        self._tar: tarfile.TarFile | None = None
        self._path = folder

    def add(self, files: _Files) -> None:
        """Adds one sample, to a new shard where the open one would grow too large."""
        size = sum(_BLOCK_BYTES + -(-len(data) // _BLOCK_BYTES) * _BLOCK_BYTES for _, data in files)
        if self._tar and self._tar.offset + size > self._limit:
            self.close()
        if self._tar is None:
            self._path = self._folder / f"{self._split}-{self.shards:06}.tar"
            self._tar = tarfile.open(self._path, "x", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed by close)
            self.shards += 1
        for name, data in files:
            info = tarfile.TarInfo(name)  # of no user, and of 1970
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        self._tar.members = []  # type: ignore[attr-defined]  # which would grow with the file
        self.samples += 1

    def close(self) -> None:
        """Ends the open shard and brings it to the disk."""
        if self._tar:
            self._tar.close()
            self._tar = None
            sync(self._path)


def parse_size(text: str) -> int:
    """Returns the bytes that such as 500MB, 2GB or 800kB stand for.

    Raises:
        UsageError: the text is no size.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    number = text.strip().lower().rstrip("kmgtb ")
    unit = text.strip().lower()[len(number) :].strip()
    try:
        return int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError) as err:
        raise UsageError(f"--size is {text!r}; expected a number with kB, MB or GB, such as 500MB") from err
