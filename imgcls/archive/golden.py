"""Reads an archive's golden inputs with their expected answers, without torch; `make_golden` writes them."""

from pathlib import Path

from imgcls.archive.contents import open_archive
from model.golden import EXPECTED_FILE, GOLDEN_FOLDER, GoldenItem, parse_golden


def read_golden(mar: Path) -> tuple[GoldenItem, ...]:
    """Reads an archive's golden inputs.

    Raises:
        ArchiveError: the archive cannot be read, or holds no usable golden inputs.
    """
    with open_archive(mar) as archive:
        text = archive.read(f"{GOLDEN_FOLDER}/{EXPECTED_FILE}")
        return parse_golden(text, read_file=lambda name: archive.read(f"{GOLDEN_FOLDER}/{name}"))
