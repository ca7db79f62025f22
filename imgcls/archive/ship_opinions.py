"""Lets modelaudit judge the Python that every archive carries, once for all builds; `make opinions` runs this.

Writes the file that `imgcls.archive.scanning.opinions` asks first. It holds for this modelaudit and this Python; with
others, and for code that has changed, each build judges for itself.
"""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from handler.layout import EARLIEST
from imgcls.archive.pack import CONFIG_FILE, write_manifest
from imgcls.archive.scanning import Opinions, scan_archive
from imgcls.archive.scanning.opinions import SHIPPED
from imgcls.archive.stage import TRAVELLING, ServingOptions, copy_package, dump_model_config
from imgcls.files import write_atomic
from model.spec import WEIGHTS_FILE

NO_TENSORS = len(b"{}").to_bytes(8, "little") + b"{}"  # safetensors


def judge_own_code() -> dict[str, list[dict[str, Any]]]:
    """Returns the opinion of each of our files that a build packs, by its key; asks no earlier one.

    Raises:
        RuntimeError: modelaudit failed, or did not say enough of a file to be kept.
    """
    with tempfile.TemporaryDirectory(prefix="imgcls-opinions-") as temporary:
        tree, archive = Path(temporary, "tree"), Path(temporary, "own.mar")
        for package in TRAVELLING:
            copy_package(Path(str(package.__file__)).parent, tree / package.__name__)
        (tree / WEIGHTS_FILE).write_bytes(NO_TENSORS)
        (tree / CONFIG_FILE).write_text(dump_model_config(ServingOptions()), encoding="utf-8")
        write_manifest(tree, name="own", version="1.0", created=EARLIEST)
        files = sorted(path for path in tree.rglob("*") if path.is_file())
        with zipfile.ZipFile(archive, "w") as file:
            for path in files:
                file.write(path, path.relative_to(tree))
        kept = Opinions(Path(temporary, "kept"), shipped=None)
        report = scan_archive(archive, require_modelaudit=True, opinions=kept)
        if len(opinions := kept.list_kept()) != sum(path.suffix == ".py" for path in files):
            raise RuntimeError(f"modelaudit did not judge every file: {report.to_json()}")
        return opinions


if __name__ == "__main__":
    write_atomic(SHIPPED, json.dumps(judge_own_code(), indent=1) + "\n")
