"""Every key that TorchServe 0.12.0 reads, and what it wants there; and those that our handler reads.

Source: ConfigManager and ModelConfig of its frontend (model-server.jar); a test compares these tables with the jar.
Where Java would take a value and silently make another of it, the range here is the narrower one.
"""

from imgcls.serving.config import ADDRESS_KEYS, GRPC_KEYS, PATH_KEYS
from imgcls.serving.lint_rules import (
    LONG_MAX,
    Check,
    address_text,
    any_text,
    boolean,
    boolean_text,
    engine,
    exactly,
    filled_text,
    host_text,
    integer,
    integers,
    json_text,
    lax_integer,
    lower_boolean_text,
    mapping,
    mapping_or_string,
    number_text,
    one_of,
    one_of_text,
    options_text,
    patterns_text,
    real_text,
    string,
)

VERSION = "0.12.0"

# Read by the launcher `torchserve`, which knows `KEY=VALUE` on one line only, and by no class of the frontend.
LAUNCHER_KEYS: dict[str, Check] = {"plugins_path": filled_text, "vmargs": options_text}

_PORT = number_text(1, 65535)
_AGE_MS = number_text(1, LONG_MAX)
_BOOLEANS = (
    *("async_logging", "cpu_launcher_enable", "debug", "disable_system_metrics", "disable_token_authorization"),
    *("enable_envvars_config", "enable_grpc_ssl", "enable_metrics_api", "enable_model_api", "install_py_dep_per_model"),
    *("limit_max_image_pixels", "model_metrics_auto_detect", "prefer_direct_buffer", "ts_open_inference_protocol"),
    *("use_env_allowed_urls", "use_native_io"),
)
_TEXTS = (
    *("cors_allowed_headers", "cors_allowed_methods", "cors_allowed_origin", "cpu_launcher_args", "keystore_pass"),
    *("default_service_handler", "keystore_type", "load_models", "service_envelope", "system_metrics_cmd"),
    *("ts_header_key_sequence_end", "ts_header_key_sequence_id", "ts_header_key_sequence_start"),
)
CONFIG_KEYS: dict[str, Check] = {
    **dict.fromkeys(ADDRESS_KEYS.values(), address_text),
    **dict.fromkeys(GRPC_KEYS.values(), _PORT),
    **dict.fromkeys(("grpc_inference_address", "grpc_management_address"), host_text),
    **dict.fromkeys((*PATH_KEYS, "model_store"), filled_text),
    **dict.fromkeys(_BOOLEANS, boolean_text),
    **dict.fromkeys(_TEXTS, any_text),
    **dict.fromkeys(("decode_input_request", "ipex_enable", "ipex_gpu_enable"), lower_boolean_text),
    "allowed_urls": patterns_text,
    "blacklist_env_vars": patterns_text,
    "default_response_timeout": number_text(1),
    "default_startup_timeout": number_text(1),
    "default_workers_per_model": number_text(0),
    "grpc_inference_max_connection_age_grace_ms": _AGE_MS,
    "grpc_inference_max_connection_age_ms": _AGE_MS,
    "grpc_management_max_connection_age_grace_ms": _AGE_MS,
    "grpc_management_max_connection_age_ms": _AGE_MS,
    "initial_distribution_port": _PORT,
    "initial_worker_port": _PORT,
    "io_ratio": number_text(1, 100),
    "job_queue_size": number_text(1),
    "max_request_size": number_text(1),
    "max_response_size": number_text(1),
    "metric_time_interval": number_text(1),
    "metrics_mode": one_of_text("log", "prometheus", "legacy"),
    "model_snapshot": json_text,
    "models": json_text,
    "netty_client_threads": number_text(0),
    "number_of_gpu": number_text(0),
    "number_of_netty_threads": number_text(0),
    "token_expiration_min": real_text,
    "unregister_model_timeout": number_text(1),
}
# Read by the frontend, and yet without effect in a file.
IGNORED_KEYS = {
    "model_server_home": "the launcher always names TorchServe's own folder",
    "python": "the launcher always names its own Python",
    "tsConfigFile": "TorchServe sets it itself",
    "version": "TorchServe sets it itself",
}
# In `models={"NAME": {"VERSION": {…}}}`.
MODELS_KEYS: dict[str, Check] = {
    "batchSize": integer(1),
    "defaultVersion": boolean,
    "marName": string,
    "maxBatchDelay": integer(1),  # as in model-config.yaml
    "maxWorkers": integer(1),
    "minWorkers": integer(1),
    "parallelLevel": integer(1),
    "responseTimeout": integer(1),
    "runtimeType": one_of("python", "python3", "lsp"),
    "startupTimeout": integer(1),
}

MODEL_KEYS: dict[str, Check] = {
    "asyncCommunication": boolean,
    "batchSize": integer(1),
    "clientTimeoutInMills": integer(0),
    "continuousBatching": boolean,
    "deviceIds": integers,
    "deviceType": one_of("cpu", "gpu"),
    "jobQueueSize": integer(1),
    "maxBatchDelay": integer(1),  # TorchServe takes its default of 100 for a 0
    "maxNumSequence": integer(1),
    "maxRetryTimeoutInSec": integer(0),
    "maxSequenceJobQueueSize": integer(1),
    "maxWorkers": integer(1),
    "minWorkers": integer(1),
    "parallelLevel": integer(1),
    "parallelType": one_of("pp", "tp", "pptp", "custom"),
    "responseTimeout": integer(1),
    "sequenceBatching": boolean,
    "sequenceMaxIdleMSec": integer(0),
    "sequenceTimeoutMSec": integer(0),
    "startupTimeout": integer(1),
    "torchrun": mapping,
    "useJobTicket": boolean,
    "useVenv": boolean,
}
TORCHRUN_KEYS: dict[str, Check] = {
    "OMP_NUMBER_THREADS": integer(1),
    "monitor-interval": integer(1),
    "nnodes": integer(1),
    "node-rank": integer(0),
    "nproc-per-node": integer(1),
    "rdzv-backend": string,
    "rdzv-conf": string,
    "rdzv-endpoint": string,
}
# Read by Python: handlers, TorchServe's own among them.
HANDLER_KEYS: dict[str, Check] = {
    "dali": mapping,
    "deepspeed": mapping,
    "handler": mapping,
    "micro_batching": mapping,
    "pippy": mapping,
    "pt2": mapping_or_string,
}
# In `handler:`, where the handler is ours; without these a worker does not start. A test compares the table with
# `handler.settings`, which imgcls cannot import: it travels in the archive, and needs Pillow.
OUR_HANDLER = "handler.entry"  # how the manifest names it
OUR_KEYS: dict[str, Check] = {
    "engine": engine,
    "threads": lax_integer(1, or_word="auto"),
    "decode": exactly("cpu", "gpu"),
    "top_k": lax_integer(1),
    "max_pixels": lax_integer(1, 178_956_970),
    "max_bytes": lax_integer(1),
}
