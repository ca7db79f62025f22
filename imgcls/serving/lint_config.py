"""Lint of config.properties: keys that TorchServe would ignore, values that it cannot use, and values that do harm."""

import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imgcls.serving.config import ADDRESS_KEYS, PATH_KEYS, ports_of
from imgcls.serving.errors import ConfigError
from imgcls.serving.lint_keys import CONFIG_KEYS, IGNORED_KEYS, LAUNCHER_KEYS, MODEL_KEYS, MODELS_KEYS, VERSION
from imgcls.serving.lint_rules import ADDRESS, Finding, Status, find_nearest
from imgcls.serving.logs import find_log_config
from imgcls.serving.properties import Entry, parse_properties

KEYS = CONFIG_KEYS | LAUNCHER_KEYS
VARIABLE = re.compile(r"\$\$([^$]+[^$])\$\$")  # TorchServe puts an environment variable's value in its place
SECRETS = ("keystore_pass",)
EVERY_URL = "file://.*|http(s)?://.*"  # the default of allowed_urls
ANY_URL = "https://any-host.example/any.mar"


def lint_config(text: str, *, where: str, folder: Path | None = None) -> list[Finding]:
    """Judges the text of a config.properties.

    Args:
        text: the file's content.
        where: the file's name, for the findings.
        folder: where its relative paths are looked for; None: files are not looked for.
    """
    entries = parse_properties(text)
    findings = [finding for entry in entries for finding in _judge(entry, entries, where=where)]
    last = {entry.key: entry for entry in entries}
    findings += _judge_together(last, where=where)
    findings += _warn(last, where=where, folder=folder)
    return sorted(findings, key=lambda finding: finding.line)


def _judge(entry: Entry, entries: list[Entry], *, where: str) -> Iterator[Finding]:
    """Looks at one line for itself."""

    def error(problem: str, fix: str) -> Finding:
        return Finding(where, entry.line, entry.key, "error", problem, fix)

    later = [other.line for other in entries if other.key == entry.key and other.line > entry.line]
    if later:
        yield error(f"{entry.key} is set again in line {later[-1]}, which wins", "remove one of the two")
    if entry.key in IGNORED_KEYS:
        yield error(f"{entry.key} is ignored in this file: {IGNORED_KEYS[entry.key]}", "remove it")
        return
    if entry.key not in KEYS:
        has_plugins = any(other.key == "plugins_path" for other in entries)
        yield _unknown(entry, where=where, has_plugins=has_plugins)
        return
    if entry.key in (*LAUNCHER_KEYS, "model_store") and not (entry.separator == "=" and entry.is_one_line):
        problem = f"{entry.key} is read by the command torchserve, which knows KEY=VALUE on one line only"
        yield error(problem, "write it as one line")
    if VARIABLE.search(entry.value):
        missing = [name for name in VARIABLE.findall(entry.value) if name not in os.environ]
        if missing:
            problem = f"{entry.key} names the environment variable {missing[0]}, which is not set here"
            yield Finding(where, entry.line, entry.key, "warning", problem, "TorchServe does not start without it")
        return
    if expected := KEYS[entry.key](entry.value):
        problem = f"{entry.key} is {entry.value!r}; expected {expected}"
        is_blank = KEYS[entry.key](entry.value.strip()) is None
        yield error(problem, "remove the blank behind it" if is_blank else "correct the value")
    elif entry.key == "models":
        yield from _judge_models(entry, where=where)
    if not entry.value.isascii() and entry.key not in SECRETS:
        problem = f"{entry.key} has characters that TorchServe reads as others, since it expects ISO 8859-1"
        yield Finding(where, entry.line, entry.key, "warning", problem, "write them as \\uXXXX")


def _unknown(entry: Entry, *, where: str, has_plugins: bool) -> Finding:
    status: Status = "warning" if has_plugins else "error"  # a plugin may read it
    problem = f"{entry.key} is no key of TorchServe {VERSION}, which ignores it"
    if entry.key in MODEL_KEYS:
        return Finding(where, entry.line, entry.key, status, problem, "it belongs into model-config.yaml")
    if nearest := find_nearest(entry.key, KEYS):
        fix = f"write {nearest}"
    elif nearest := find_nearest(entry.key, MODEL_KEYS):
        fix = f"write {nearest} into model-config.yaml"
    else:
        fix = "remove it"
    return Finding(where, entry.line, entry.key, status, problem, fix)


def _judge_models(entry: Entry, *, where: str) -> Iterator[Finding]:
    """Looks into `models={"NAME": {"VERSION": {…}}}`."""
    for model, versions in json.loads(entry.value).items():
        for version, settings in versions.items() if isinstance(versions, dict) else [("?", versions)]:
            name = f"{model} {version}"
            if not isinstance(settings, dict):
                problem = f'models: {name} is {settings!r}; expected {{"NAME": {{"VERSION": {{…}}}}}}'
                yield Finding(where, entry.line, entry.key, "error", problem, "correct the value")
                continue
            for key, value in settings.items():
                yield from _judge_models_key(entry, name, key, value, where=where)


def _judge_models_key(entry: Entry, name: str, key: str, value: Any, *, where: str) -> Iterator[Finding]:
    if isinstance(value, str) and value.isdecimal():  # Java takes it for a number here
        value = int(value)
    if key not in MODELS_KEYS:
        nearest = find_nearest(key, MODELS_KEYS)
        problem = f"models: {key} of {name} is no key of TorchServe {VERSION} here, which ignores it"
        fix = f"write {nearest}" if nearest else "remove it"
        yield Finding(where, entry.line, entry.key, "error", problem, fix)
    elif expected := MODELS_KEYS[key](value):
        problem = f"models: {key} of {name} is {value!r}; expected {expected}"
        yield Finding(where, entry.line, entry.key, "error", problem, "correct the value")


def _judge_together(last: Mapping[str, Entry], *, where: str) -> Iterator[Finding]:
    """Looks at what only goes wrong together."""
    pair = [last[key] for key in ("certificate_file", "private_key_file") if key in last]
    secure = [
        last[key] for key in ADDRESS_KEYS.values() if key in last and last[key].value.lower().startswith("https:")
    ]
    give = "give both certificate_file and private_key_file, or keystore"
    if len(pair) == 1 and "keystore" not in last:
        problem = f"{pair[0].key} stands without its other half, so TorchServe ignores it"
        yield Finding(where, pair[0].line, pair[0].key, "error", problem, give)
    if secure and len(pair) < 2 and "keystore" not in last:
        problem = f"{secure[0].key} is {secure[0].value!r} and no certificate is named, so TorchServe does not start"
        yield Finding(where, secure[0].line, secure[0].key, "error", problem, give)
    try:
        ports = ports_of({key: entry.value for key, entry in last.items()}).model_dump()
    except ConfigError:  # reported for its own line, or a Unix socket
        return
    for name, port in ports.items():
        first = next(other for other in ports if ports[other] == port)
        if first != name:
            key = ADDRESS_KEYS.get(name, f"{name}_port")
            line = last[key].line if key in last else 0
            problem = f"{key} has port {port}, which {ADDRESS_KEYS.get(first, f'{first}_port')} has too"
            yield Finding(where, line, key, "error", problem, "give each its own")


def _warn(last: Mapping[str, Entry], *, where: str, folder: Path | None) -> Iterator[Finding]:
    """Names what TorchServe accepts and what does harm."""

    def warning(key: str, problem: str, fix: str) -> Finding:
        return Finding(where, last[key].line if key in last else 0, key, "warning", problem, fix)

    def is_true(key: str) -> bool:
        return key in last and last[key].value.lower() == "true"

    urls = last["allowed_urls"].value if "allowed_urls" in last else EVERY_URL
    if any(_matches(pattern, ANY_URL) for pattern in urls.split(",")):
        problem = (
            f"allowed_urls {'is ' + repr(urls) if 'allowed_urls' in last else 'is not set'}, so archives may come "
        )
        fix = "write a pattern of your own hosts, or one that matches no URL: only-files-in-the-model-store"
        yield warning("allowed_urls", problem + "from every host (CVE-2023-43654)", fix)
    opened = [
        key for key in (*ADDRESS_KEYS.values(), *_GRPC_ADDRESSES) if key in last and not _is_local(last[key].value)
    ]
    for key in opened:
        if key != ADDRESS_KEYS["inference"] and key != "grpc_inference_address":
            api = "metrics, which ask for no token," if key == ADDRESS_KEYS["metrics"] else "management API"
            problem = f"{key} is {last[key].value!r}: the {api} can be reached from other machines"
            yield warning(key, problem, "listen on 127.0.0.1")
    if is_true("disable_token_authorization") and opened:
        problem = f"disable_token_authorization is true and {opened[0]} is {last[opened[0]].value!r}: anybody may ask"
        yield warning("disable_token_authorization", problem, "listen on 127.0.0.1, or set it to false")
    if is_true("install_py_dep_per_model"):
        problem = "install_py_dep_per_model is true: loading an archive installs whatever packages it names"
        yield warning("install_py_dep_per_model", problem, "install packages when the server is built")
    if is_true("use_env_allowed_urls"):
        problem = "use_env_allowed_urls is true: whoever sets the environment decides where archives may come from"
        yield warning("use_env_allowed_urls", problem, "write allowed_urls into this file")
    if "cors_allowed_origin" in last and last["cors_allowed_origin"].value.strip() == "*":
        problem = "cors_allowed_origin is '*': every web page may ask in its visitor's name"
        yield warning("cors_allowed_origin", problem, "name the pages that may")
    for key in PATH_KEYS:
        if folder is not None and key in last and last[key].value and not (folder / last[key].value).exists():
            problem = f"{key} is {last[key].value!r}, which is not there"
            yield warning(key, problem, "correct the path, or make the file")
    logs = find_log_config(last["vmargs"].value) if folder is not None and "vmargs" in last else None
    if logs is not None and not logs.exists():
        problem = f"vmargs has Java log as {str(logs)!r} says, which is not there, so that nothing is logged"
        yield warning("vmargs", problem, "correct the path, or remove the option")


_GRPC_ADDRESSES = ("grpc_inference_address", "grpc_management_address")


def _matches(pattern: str, url: str) -> bool:
    try:
        return re.fullmatch(pattern, url) is not None
    except re.error:  # reported for its own line
        return False


def _is_local(address: str) -> bool:
    """Whether only this machine reaches an address; one that cannot be read is reported elsewhere."""
    match = ADDRESS.fullmatch(address)
    host = match[2] if match else address
    if host is None or host.lower() == "localhost":  # None: a Unix socket
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return bool(re.search(r"[^\w.-]", host))
