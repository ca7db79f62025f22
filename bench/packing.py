"""`python -m bench.packing RUN STORE`: a build without golden answers, scan and self-test; `bench.archive` times it."""

import sys
import tempfile
from pathlib import Path

from handler.integrity import hash_file
from imgcls.archive.pack import pack_tree, read_build_time, record_tree
from imgcls.archive.publish import publish
from imgcls.archive.stage import ServingOptions, describe_archive, stage_archive
from model.spec import WEIGHTS_FILE


def main(run: Path, store: Path) -> None:
    """Packs a run as `store/packed.mar`."""
    created, options = read_build_time(), ServingOptions()
    store.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store) as temporary:
        tree, archive = Path(temporary) / "tree", Path(temporary) / "packed.mar"
        tree.mkdir()
        stage_archive(run, tree, name="packed", version="1.0", options=options, created=created)
        sha256 = hash_file(tree / WEIGHTS_FILE)
        describe_archive(tree, name="packed", version="1.0", options=options, created=created, weights_sha256=sha256)
        pack_tree(tree, archive, created=created, integrity=record_tree(tree, known={WEIGHTS_FILE: sha256}))
        publish(archive, store / "packed.mar")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
