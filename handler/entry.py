"""What the manifest names as the handler: the check of the unpacked archive, then the classifier.

TorchServe wants exactly one class in this module. Nothing of `model`, and of this package only what checks, is imported
before the check has passed. What such a check can and cannot promise: docs/trust.md.
"""

import sys

sys.dont_write_bytecode = True  # compiled Python beside a source would run instead of it: so none may be there

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handler.integrity import INTEGRITY_FILE, parse_integrity
from handler.packed import check_store
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
        trust = read_trust_of_environment()
        self.signer = check_trust(folder, trust)
        self.integrity = None
        if trust.policy != "off":
            check_store(folder)
            self.integrity = parse_integrity((folder / INTEGRITY_FILE).read_bytes())
        from handler.image_classifier import ImageClassifier

        self._classifier = ImageClassifier()
        self._classifier.initialize(context)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answers a batch of predictions, or what the management API asks for with `?customized=true`."""
        # The management API's question comes alone and empty; a client's header of this name asks for nothing.
        if len(data) == 1 and not data[0] and context.get_request_header(0, "describe") == "True":
            return [json.dumps(self.describe()).encode()]
        return self._classifier.handle(data, context)

    def describe(self) -> dict[str, Any]:
        """Returns what this worker runs: content by its hashes, where they were checked, its signer and its engine."""
        files = self.integrity.by_path() if self.integrity else {}
        weights = files.get("weights.safetensors")
        content = {
            "tree_sha256": self.integrity.tree_sha256 if self.integrity else None,
            "weights_sha256": weights.sha256 if weights else None,
        }
        return self._classifier.describe() | content | {"signer": self.signer}
