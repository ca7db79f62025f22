"""What the manifest names as the handler: the check of the unpacked archive, then the classifier.

TorchServe wants exactly one class in this module. Nothing of `model`, and of this package only what checks, is imported
before the check has passed. What such a check can and cannot promise: docs/trust.md.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handler.integrity import INTEGRITY_FILE, parse_integrity, remove_compiled
from handler.trust import check_trust, read_trust_of_environment

logger = logging.getLogger(__name__)


class VerifiedImageClassifier:
    """The classifier of an archive that is what its record says, under the policy of the server that runs it."""

    def initialize(self, context: Any) -> None:
        """Checks the tree that TorchServe has unpacked, then loads the classifier from it.

        Raises:
            IntegrityError: a file is not as recorded, or the signature is not one that the policy trusts.
            Exception: as `ImageClassifier.initialize`.
        """
        folder = Path(context.system_properties["model_dir"])
        self.signer = check_trust(folder, read_trust_of_environment())
        self.integrity = parse_integrity((folder / INTEGRITY_FILE).read_bytes())
        remove_compiled(folder)
        from handler.image_classifier import ImageClassifier

        self._classifier = ImageClassifier()
        self._classifier.initialize(context)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answers a batch of predictions, or what the management API asks for with `?customized=true`."""
        if context.get_request_header(0, "describe") == "True":
            return [json.dumps(self.describe()).encode()]
        return self._classifier.handle(data, context)

    def describe(self) -> dict[str, Any]:
        """Returns what this worker runs: the content by its hashes, who signed it, and how it is executed."""
        hashes = {file.path: file.sha256 for file in self.integrity.files}
        content = {"tree_sha256": self.integrity.tree_sha256, "weights_sha256": hashes.get("weights.safetensors")}
        return self._classifier.describe() | content | {"signer": self.signer}
