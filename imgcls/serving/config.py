"""Reads a config.properties, overlays what is chosen at start, and writes the file that the server really gets.

The user's file is never changed. Relative paths in it are resolved against its folder, because the server runs in its
own state folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from imgcls.files import write_atomic
from imgcls.serving.errors import ConfigError
from imgcls.serving.ports import Ports
from imgcls.serving.properties import parse_properties

PATH_KEYS = ("certificate_file", "cpp_log_config", "keystore", "metrics_config", "private_key_file", "workflow_store")
ADDRESS_KEYS = {"inference": "inference_address", "management": "management_address", "metrics": "metrics_address"}
GRPC_KEYS = {"grpc_inference": "grpc_inference_port", "grpc_management": "grpc_management_port"}
DEFAULT_PORTS = Ports(inference=8080, management=8081, metrics=8082, grpc_inference=7070, grpc_management=7071)


@dataclass(frozen=True)
class Overlay:
    """What `imgcls serve` decides over the file; None leaves the file's value."""

    model_store: Path
    ports: Ports
    workers: int | None = None
    model_api: bool = False


def read_config(path: Path) -> dict[str, str]:
    """Reads a Java properties file, and drops blanks behind values, which plain TorchServe does not.

    Raises:
        ConfigError: the file is missing, is no text, or a line holds no key=value pair.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot be read ({err}); name another file with --ts-config") from err
    config: dict[str, str] = {}
    for entry in parse_properties(text):
        if not entry.separator or not entry.key:
            raise ConfigError(f"{path}: got the line {entry.text.strip()[:60]!r}; expected key=value")
        config[entry.key] = entry.value.strip()
    return config


def ports_of(config: Mapping[str, str]) -> Ports:
    """Returns the ports that a configuration names, TorchServe's defaults where it names none.

    Raises:
        ConfigError: an address or port cannot be parsed.
    """
    ports = DEFAULT_PORTS.model_dump()
    for name, key in ADDRESS_KEYS.items():
        if key in config:
            ports[name] = _port_of_address(key, config[key])
    for name, key in GRPC_KEYS.items():
        if key in config:
            ports[name] = _parse_port(key, config[key])
    return Ports(**ports)


def address_of(config: Mapping[str, str], name: str, *, port: int) -> str:
    """Returns the URL at which this machine reaches one of the server's HTTP ports."""
    address = urlsplit(config.get(ADDRESS_KEYS[name], "http://127.0.0.1"))
    host = "127.0.0.1" if address.hostname in (None, "0.0.0.0", "::") else address.hostname
    return f"{address.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def merge_config(config: Mapping[str, str], overlay: Overlay, *, folder: Path) -> dict[str, str]:
    """Returns the effective configuration.

    Args:
        config: as read from the user's file.
        overlay: what was chosen at start.
        folder: of the user's file, against which its relative paths are meant.
    """
    merged = {key: value for key, value in config.items() if key not in ("load_models", "model_snapshot")}
    for key in PATH_KEYS:
        if key in merged:
            merged[key] = str((folder / merged[key]).resolve())
    for name, key in ADDRESS_KEYS.items():
        merged[key] = _with_port(merged.get(key, "http://127.0.0.1"), getattr(overlay.ports, name))
    for name, key in GRPC_KEYS.items():
        merged[key] = str(getattr(overlay.ports, name))
        merged.setdefault(key.replace("_port", "_address"), "127.0.0.1")
    merged["model_store"] = str(overlay.model_store.resolve())
    merged["enable_envvars_config"] = "false"  # TS_* variables would override this file
    if overlay.model_api:
        merged["enable_model_api"] = "true"
    if overlay.workers is not None:
        merged["default_workers_per_model"] = str(overlay.workers)
    return merged


def is_whole(text: str) -> bool:
    """Tells whether a value is a whole number without a sign, as Java reads it."""
    return text.isascii() and text.isdigit()


def write_config(path: Path, config: Mapping[str, str]) -> None:
    """Writes a properties file, keys sorted; a backslash is escaped, as Java's reader wants it."""
    lines = [f"{key}={_escape(value)}\n" for key, value in sorted(config.items())]
    write_atomic(path, "# Written by imgcls serve at each start; change config.properties instead.\n" + "".join(lines))


def _port_of_address(key: str, address: str) -> int:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as err:
        raise ConfigError(f"{key} is {address!r}; {err}") from err
    if parts.scheme not in ("http", "https") or len(address.split()) != 1:
        raise ConfigError(f"{key} is {address!r}; imgcls serve wants http://HOST:PORT or https://HOST:PORT")
    return port or (443 if parts.scheme == "https" else 80)


def _parse_port(key: str, text: str) -> int:
    if not is_whole(text) or not 0 < int(text) < 65536:
        raise ConfigError(f"{key} is {text!r}; expected a port from 1 to 65535")
    return int(text)


def _with_port(address: str, port: int) -> str:
    parts = urlsplit(address)
    host = parts.hostname or "127.0.0.1"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\")
