from pathlib import Path

import pytest

from imgcls.serving.config import Overlay, address_of, merge_config, ports_of, read_config, write_config
from imgcls.serving.errors import ConfigError
from imgcls.serving.ports import Ports, ports_from

PROJECT_CONFIG = Path(__file__).parents[2] / "config.properties"
PORTS = Ports(inference=9000, management=9001, metrics=9002, grpc_inference=9003, grpc_management=9004)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = {"allowed_urls": r"https://models\.example/.*", "vmargs": "-Xmx1g -Da=b"}
    write_config(tmp_path / "config.properties", config)
    assert read_config(tmp_path / "config.properties") == config


def test_comments_and_continued_lines_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    path.write_text("# c\n! d\n\nvmargs=-Xmx1g \\\n  -Xms1g\n a = b\n")
    assert read_config(path) == {"vmargs": "-Xmx1g -Xms1g", "a": "b"}


@pytest.mark.parametrize("text", ["inference_address 8080\n", "=x\n"])
def test_line_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.properties"
    path.write_text(text)
    with pytest.raises(ConfigError, match="expected key=value"):
        read_config(path)


def test_ports_come_from_addresses_or_torchserves_defaults() -> None:
    assert ports_of({"inference_address": "http://0.0.0.0:9000", "grpc_inference_port": "9003"}) == Ports(
        inference=9000, management=8081, metrics=8082, grpc_inference=9003, grpc_management=7071
    )


@pytest.mark.parametrize(
    "config",
    [
        {"inference_address": "unix:/tmp/x"},
        {"inference_address": "http://h:99999"},
        {"inference_address": "http://[::1:8080"},
        {"inference_address": "http://h ost:8080"},
        {"grpc_inference_port": "x"},
        {"grpc_inference_port": "²"},
    ],
)
def test_address_that_cannot_be_served_is_refused(config: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        ports_of(config)


def test_overlay_changes_ports_and_store_and_keeps_hosts(tmp_path: Path) -> None:
    config = {"inference_address": "https://0.0.0.0:8080", "keystore": "keys/store.p12", "load_models": "ALL"}
    merged = merge_config(config, Overlay(tmp_path, ports=PORTS, workers=3), folder=tmp_path)
    assert merged["inference_address"] == "https://0.0.0.0:9000"
    assert merged["management_address"] == "http://127.0.0.1:9001"
    assert merged["grpc_inference_port"] == "9003"
    assert merged["grpc_inference_address"] == "127.0.0.1"
    assert merged["keystore"] == str(tmp_path / "keys/store.p12")
    assert merged["default_workers_per_model"] == "3"
    assert merged["enable_envvars_config"] == "false"
    assert "load_models" not in merged


def test_wildcard_host_is_reached_over_loopback() -> None:
    assert address_of({"inference_address": "http://0.0.0.0:1"}, "inference", port=9) == "http://127.0.0.1:9"
    assert address_of({}, "management", port=9) == "http://127.0.0.1:9"


def test_projects_configuration_is_closed_to_the_network() -> None:
    config = read_config(PROJECT_CONFIG)
    assert {config[key] for key in config if key.endswith("_address")} == {
        "http://127.0.0.1:8080",
        "http://127.0.0.1:8081",
        "http://127.0.0.1:8082",
        "127.0.0.1",
    }
    assert config["disable_token_authorization"] == config["enable_model_api"] == "false"
    assert "://" not in config["allowed_urls"] and "*" not in config["allowed_urls"]


@pytest.mark.parametrize("first", [-1, 65532])
def test_five_ports_must_fit(first: int) -> None:
    with pytest.raises(ConfigError, match="--port"):
        ports_from(first)


def test_ports_follow_the_first_or_are_free() -> None:
    assert ports_from(9000) == PORTS
    assert len(set(ports_from(0).model_dump().values())) == 5
