"""`python -m bench.packing RUN STORE`: a build without golden answers, scan and self-test; `bench.archive` times it."""

import sys
import tempfile
from pathlib import Path

from imgcls.archive.pack import pack_tree, read_build_time
from imgcls.archive.publish import publish
from imgcls.archive.stage import ServingOptions, describe_archive, stage_archive


def main(run: Path, store: Path) -> None:
    """Packs a run as `store/packed.mar`."""
    created, options = read_build_time(), ServingOptions()
    store.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store) as temporary:
        tree, archive = Path(temporary) / "tree", Path(temporary) / "packed.mar"
        tree.mkdir()
        stage_archive(run, tree, name="packed", version="1.0", options=options, created=created)
        describe_archive(tree, name="packed", version="1.0", options=options, created=created)
        pack_tree(tree, archive, created=created)
        publish(archive, store / "packed.mar")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
