"""Loads an unpacked archive with TorchServe's own loader, Service and Context, and answers its golden inputs.

Runs as a process of its own, with the archive's folder first on the path as in a worker:
`PYTHONPATH=FOLDER python -P FILE FOLDER`. Imports nothing of imgcls, so that `model` and `handler` can only be the
archive's. Prints one JSON line with the answers; a failure is a traceback, its reason as the last line, and a non-zero
exit.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Loads the archive, sends every golden input as one batch, and prints what came back."""
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())["model"]
    importlib.import_module(manifest["handler"])  # TsModelLoader would hide why it cannot be imported
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.model_loader import TsModelLoader

    expected = json.loads((folder / "golden" / "expected.json").read_text())
    service = TsModelLoader().load(
        manifest["modelName"],
        str(folder),
        manifest["handler"],
        batch_size=len(expected),
        metrics_cache=_metrics(MetricsCacheYamlImpl),
    )
    service.set_cl_socket(None)
    batch = [_request(index, (folder / "golden" / item["file"]).read_bytes()) for index, item in enumerate(expected)]
    headers, inputs, ids = service.retrieve_data_for_inference(batch)
    service.context.request_processor, service.context.request_ids = headers, ids
    answers = service._entry_point(inputs, service.context)
    statuses = [service.context.get_response_status(index)[0] for index in ids]
    print(json.dumps([{"status": s, "body": json.loads(a)} for s, a in zip(statuses, answers, strict=True)]))


def _request(index: int, image: bytes) -> dict[str, Any]:
    parameter = {"name": "body", "contentType": "application/octet-stream", "value": bytearray(image)}
    return {"requestId": str(index).encode(), "parameters": [parameter], "headers": []}


def _metrics(cache_class: Any) -> Any:
    import ts

    cache = cache_class(config_file_path=str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    cache.initialize_cache()
    return cache


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception as err:
        traceback.print_exc()
        sys.exit(f"{type(err).__name__}: {' '.join(str(err).split())}")
