import importlib.util
import json
import math
import re
import struct
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from handler.settings import PILLOW_MAX_PIXELS, HandlerSettings
from imgcls.archive.pack import HANDLER
from imgcls.archive.stage import ServingOptions, dump_model_config
from imgcls.cli.main import app
from imgcls.errors import UsageError
from imgcls.serving import doctor
from imgcls.serving.config import read_config
from imgcls.serving.lint import lint_archive, lint_config, lint_file, lint_model_config
from imgcls.serving.lint_keys import (
    CONFIG_KEYS,
    HANDLER_KEYS,
    IGNORED_KEYS,
    LAUNCHER_KEYS,
    MODEL_KEYS,
    MODELS_KEYS,
    OUR_HANDLER,
    OUR_KEYS,
    TORCHRUN_KEYS,
)
from imgcls.serving.lint_rules import Finding
from imgcls.serving.properties import parse_properties
from model.engines.kinds import KINDS

PROJECT = Path(__file__).parents[2]
TORCHSERVE = Path(importlib.util.find_spec("ts").origin).parent  # importing it leaves a file open
JAR = TORCHSERVE / "frontend" / "model-server.jar"
CLOSED = "allowed_urls=none\n"  # so that nothing but the subject is found
# Texts of ConfigManager that look like keys and are something else.
NO_KEYS = {
    *("changeit", "default", "false", "https", "index", "log", "logs", "oip", "prometheus", "torchelastic_ts", "true"),
    *("ts", "ts_request_sequence_end", "ts_request_sequence_id", "ts_request_sequence_start"),
}


def java_strings(name: str) -> set[str]:
    """Returns the string constants of a class of TorchServe's frontend.

    Source: https://docs.oracle.com/javase/specs/jvms/se17/html/jvms-4.html#jvms-4.4
    """
    with zipfile.ZipFile(JAR) as jar:
        data = jar.read(f"org/pytorch/serve/{name}.class")
    count, texts, strings, at, index = struct.unpack_from(">H", data, 8)[0], {}, [], 10, 1
    sizes = {7: 3, 8: 3, 16: 3, 19: 3, 20: 3, 15: 4, 5: 9, 6: 9}
    while index < count:
        tag = data[at]
        size = 3 + struct.unpack_from(">H", data, at + 1)[0] if tag == 1 else sizes.get(tag, 5)
        if tag == 1:
            texts[index] = data[at + 3 : at + size].decode(errors="replace")
        elif tag == 8:
            strings.append(struct.unpack_from(">H", data, at + 1)[0])
        index += 2 if tag in (5, 6) else 1  # a long and a double take two places
        at += size
    return {texts[place] for place in strings}


def find(text: str) -> list[tuple[int, str, str]]:
    return [(finding.line, finding.key, finding.status) for finding in lint_config(CLOSED + text, where="c")]


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_tables_hold_every_key_of_torchserves_jar_and_no_other():
    strings = java_strings("util/ConfigManager")
    keys = {text for text in strings if re.fullmatch(r"[a-z][a-z0-9_]*", text)} - NO_KEYS | {"tsConfigFile"}
    assert set(CONFIG_KEYS) | set(IGNORED_KEYS) == keys
    assert strings >= NO_KEYS, "an exception that is none hides a key"


def test_tables_of_model_settings_are_those_of_torchserves_jar():
    def words(name: str) -> set[str]:
        return {text for text in java_strings(name) if re.fullmatch(r"[\w-]+", text)}

    assert set(MODEL_KEYS) == words("archive/model/ModelConfig")
    assert set(TORCHRUN_KEYS) == words("archive/model/ModelConfig$TorchRun") - {"c10d"}
    assert set(MODELS_KEYS) == words("wlm/Model") - {"DATA_QUEUE"}


def test_tables_know_what_the_launcher_and_the_handlers_read():
    launcher = (TORCHSERVE / "model_server.py").read_text()
    assert set(re.findall(r'props\.get\("(\w+)"', launcher)) == {*LAUNCHER_KEYS, "model_store"}
    sources = [path.read_text() for path in TORCHSERVE.rglob("*.py")]
    read = {key for text in sources for key in re.findall(r'model_yaml_config(?:\.get\(|\[)"(\w+)"', text)}
    assert {"handler", "pt2"} <= read <= set(HANDLER_KEYS)


def test_the_projects_own_settings_are_clean(tmp_path: Path):
    assert lint_file(PROJECT / "config.properties") == []
    for options in (ServingOptions(), ServingOptions(workers=2, batch_size=1)):
        assert lint_model_config(dump_model_config(options)) == []


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("max_reqest_size", "max_request_size"),
        ("TS_JOB_QUEUE_SIZE", "job_queue_size"),
        ("jobQueueSizes", "job_queue_size"),
        ("metrics-mode", "metrics_mode"),
        ("plugin_path", "plugins_path"),
        ("\ufeffinference_address", "inference_address"),
    ],
)
def test_unknown_key_is_an_error_with_the_nearest_right_one(key: str, meant: str):
    finding = only(lint_config(f"{CLOSED}\n# c\n{key}=1\n", where="my.properties"))
    assert str(finding) == (
        f"my.properties:4: error: {key} is no key of TorchServe 0.12.0, which ignores it; write {meant}"
    )


def test_key_of_the_other_file_is_sent_there():
    assert "model-config.yaml" in only(lint_config(f"{CLOSED}maxBatchDelay=1", where="c")).fix
    assert only(lint_config(f"{CLOSED}batch_size=8", where="c")).fix == "write batchSize into model-config.yaml"
    assert "config.properties" in only(lint_model_config("install_py_dep_per_model: true")).fix
    assert only(lint_config(f"{CLOSED}xyz=1", where="c")).fix == "remove it"


def test_unknown_key_may_be_a_plugins():
    assert find("plugins_path=plugins\nmy_plugins_key=1") == [(3, "my_plugins_key", "warning")]


@pytest.mark.parametrize(
    "line",
    [
        *("max_request_size=10MB", "job_queue_size=ten", "job_queue_size=0", "max_request_size=3000000000"),
        *("default_response_timeout=30s", "number_of_netty_threads=-1", "metric_time_interval=0", "io_ratio=200"),
        *("enable_model_api=yes", "enable_model_api=1", "decode_input_request=False", "enable_model_api="),
        *("metrics_mode=prometheus2", "token_expiration_min=1h", "models={bad", "models=[]"),
        *(
            "inference_address=127.0.0.1:8080",
            "inference_address=http://[::1]:8080",
            "metrics_address=http://127.0.0.1:65535",
        ),
        *("grpc_inference_port=127.0.0.1:7070", "grpc_inference_address=http://127.0.0.1", "blacklist_env_vars=("),
        *("vmargs=Xmx1g", "model_store=", "python=python3", "version=1"),
        'models={"m": {"minWorkers": 2}}',
        'models={"m": {"1.0": {"minWorkers": "two"}}}',
        'models={"m": {"1.0": {"min_workers": 2}}}',
    ],
)
def test_value_that_torchserve_cannot_use_is_an_error(line: str):
    [(_, key, status)] = [found for found in find(line) if found[0]]
    assert (key, status) == (line.partition("=")[0], "error")


@pytest.mark.parametrize(
    "line",
    [
        *("max_request_size=2147483647", "token_expiration_min=0.5", "metrics_mode=Prometheus", "debug=TRUE"),
        *("inference_address=unix:/tmp/socket", "inference_address=http://localhost", "grpc_inference_address=::1"),
        *("vmargs=-Xmx1g -Xms64m", "grpc_inference_max_connection_age_ms=9223372036854775807", "keystore_pass=ä b"),
        'models={"m": {"1.0": {"minWorkers": "2", "maxWorkers": 2, "marName": "m.mar"}}}',
    ],
)
def test_value_that_torchserve_takes_is_fine(line: str):
    assert find(line) == []


def test_blank_behind_a_value_is_seen_because_java_keeps_it():
    finding = only(lint_config(f"{CLOSED}enable_model_api=true \n", where="c"))
    assert "is 'true '" in finding.problem and finding.fix == "remove the blank behind it"


def test_key_that_is_set_twice_is_an_error_where_it_is_overruled():
    finding = only(lint_config(f"{CLOSED}job_queue_size=5\n\njob_queue_size=6\n", where="c"))
    assert (finding.line, finding.problem) == (2, "job_queue_size is set again in line 4, which wins")


@pytest.mark.parametrize("text", ["vmargs=-Xmx1g \\\n  -Xms1g", "vmargs: -Xmx1g", "vmargs -Xmx1g", "model_store:x"])
def test_what_the_launcher_cannot_read_is_an_error(text: str):
    assert "knows KEY=VALUE on one line only" in only(lint_config(CLOSED + text, where="c")).problem


def test_environment_variable_in_a_value_is_not_judged_but_must_be_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOPE", raising=False)
    assert find("max_request_size=$$NOPE$$") == [(2, "max_request_size", "warning")]
    monkeypatch.setenv("NOPE", "1")
    assert find("max_request_size=$$NOPE$$") == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("certificate_file=a", "certificate_file"),
        ("inference_address=https://127.0.0.1:8443", "inference_address"),
        ("management_address=http://127.0.0.1:8080", "management_address"),
        ("grpc_management_port=7070", "grpc_management_port"),
    ],
)
def test_settings_that_do_not_go_together_are_errors(text: str, key: str):
    assert find(text) == [(2, key, "error")]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("management_address=http://0.0.0.0:8081", "management_address"),
        ("grpc_management_address=0.0.0.0", "grpc_management_address"),
        ("metrics_address=http://example.org:8082", "metrics_address"),
        ("disable_token_authorization=true\ninference_address=http://0.0.0.0:8080", "disable_token_authorization"),
        ("install_py_dep_per_model=true", "install_py_dep_per_model"),
        ("use_env_allowed_urls=true", "use_env_allowed_urls"),
        ("cors_allowed_origin=*", "cors_allowed_origin"),
        ("load_models=ä", "load_models"),
    ],
)
def test_value_that_does_harm_is_a_warning(text: str, key: str):
    assert find(text) == [(2, key, "warning")]


def test_closed_servers_are_not_warned_of():
    assert find("disable_token_authorization=true\ninference_address=http://127.0.0.2:8080") == []
    assert find("inference_address=http://0.0.0.0:8080") == []  # what a gateway in another container needs


@pytest.mark.parametrize("text", ["", "allowed_urls=.*", "allowed_urls=file://.*,https?://.*", "allowed_urls=h.*"])
def test_archives_from_every_host_are_warned_of(text: str):
    finding = only(lint_config(text, where="c"))
    assert (finding.key, finding.status) == ("allowed_urls", "warning") and "CVE-2023-43654" in finding.problem
    assert [finding.status for finding in lint_config("allowed_urls=(", where="c")] == ["error"]
    assert lint_config(r"allowed_urls=https://models\\.example/.*", where="c") == []


def test_file_that_is_not_there_is_warned_of(tmp_path: Path):
    config = tmp_path / "config.properties"
    config.write_text(f"{CLOSED}metrics_config=metrics.yaml\n")
    assert only(lint_file(config)).problem == "metrics_config is 'metrics.yaml', which is not there"
    (tmp_path / "metrics.yaml").touch()
    assert lint_file(config) == []


def test_log_configuration_that_is_not_there_is_warned_of(tmp_path: Path):
    config, logs = tmp_path / "config.properties", tmp_path / "my logs.xml"
    config.write_text(f"{CLOSED}vmargs=-Xmx2g -Dlog4j.configurationFile={logs.as_uri()}\n")
    assert only(lint_file(config)).problem.startswith(f"vmargs has Java log as '{logs}' says, which is not there")
    logs.touch()
    assert lint_file(config) == []
    config.write_text(f"{CLOSED}vmargs=-Dlog4j.configurationFile=http://logs.example/log4j2.xml\n")
    assert lint_file(config) == []


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("a=b", [("a", "b")]),
        ("  a : b ", [("a", "b ")]),
        ("a b c", [("a", "b c")]),
        ("a", [("a", "")]),
        ("a=b\\\n   c\n#x\\\nd=e", [("a", "bc"), ("d", "e")]),
        ("a=b\\\\\nc=d", [("a", "b\\"), ("c", "d")]),
        ("a\\=b=\\u0041\\t\\q", [("a=b", "A\tq")]),
        ("!x\r\na=b\rc=d\\", [("a", "b"), ("c", "d")]),
        ("a==b", [("a", "=b")]),
    ],
)
def test_properties_are_read_as_java_reads_them(text: str, entries: list[tuple[str, str]]):
    assert [(entry.key, entry.value) for entry in parse_properties(text)] == entries


def test_a_comment_that_ends_in_a_backslash_does_not_swallow_the_next_line(tmp_path: Path):
    (tmp_path / "c").write_text("# C:\\\njob_queue_size=5\n")
    assert read_config(tmp_path / "c") == {"job_queue_size": "5"}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *(("batch_size", "batchSize"), ("Batchsize", "batchSize"), ("job_queue_size", "jobQueueSize")),
        *(("maxBatchDelayMs", "maxBatchDelay"), ("handlr", "handler"), ("workers", "minWorkers")),
    ],
)
def test_unknown_model_setting_is_an_error_with_the_nearest_right_one(key: str, meant: str):
    [finding] = lint_model_config(f"# c\n{key}: 1\n", where="m.yaml")
    expected = {"write minWorkers", "write maxWorkers"} if key == "workers" else {f"write {meant}"}
    assert (finding.line, finding.status) == (2, "error") and finding.fix in expected


def test_sections_are_a_foreign_handlers_and_other_values_suspicious():
    text = "my_section: {a: 1}\nlist_of_mine: [1]\npt2: {compile: {enable: true}}\nhandler: {mine: 1}\n"
    assert lint_model_config(text, is_ours=False) == []
    assert only(lint_model_config("zzz: 1\n", is_ours=False)).status == "warning"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("surprise: {a: 1}", "remove it, unless a handler of your own reads it"),
        ("surprise: [1]", "remove it, unless a handler of your own reads it"),
        ("handler_settings: {engine: eager}", "write handler or remove it, unless a handler of your own reads it"),
        ("top_k: 5", "write it under handler:, unless a handler of your own reads it"),
    ],
)
def test_unknown_section_is_a_warning_as_our_handler_does_not_read_it(text: str, fix: str):
    finding = only(lint_model_config(f"batchSize: 8\n{text}\n"))
    assert (finding.line, finding.status, finding.fix) == (2, "warning", fix)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("engin: auto", "handler.engin is no setting of imgcls's handler, which does not start with it; write engine"),
        ("topk: 3", "handler.topk is no setting of imgcls's handler, which does not start with it; write top_k"),
        ("zzz: 3", "with it; remove it; its settings are engine, threads, decode, top_k, max_pixels, max_bytes"),
        ("1: 3", "handler.1 is no setting of imgcls's handler"),
        ("engine: openvino-int4", "expected auto or one of openvino-int8, "),
        ("engine: openvino-int4", "(did you mean openvino-int8?), without which no worker starts; correct the value"),
        ("decode: GPU", "handler.decode is 'GPU'; expected one of cpu, gpu, without which no worker starts"),
        ("threads: two", "handler.threads is 'two'; expected a whole number from 1, or auto, without which"),
    ],
)
def test_handler_setting_with_which_no_worker_starts_is_an_error_in_its_own_line(line: str, said: str):
    finding = only(lint_model_config(f"handler:\n  max_bytes: 10\n  {line}\n", where="m.yaml"))
    assert str(finding).startswith("m.yaml:3: error: handler.") and said in str(finding)


def test_handler_settings_behind_an_anchor_are_judged_too():
    text = "pt2: &shared {top_k: 3, engin: auto}\nhandler:\n  <<: *shared\n  decode: cpu\n"
    assert only(lint_model_config(text)).key == "handler.engin"


def test_table_of_handler_settings_is_that_of_the_handler():
    """By what either says to each value; `imgcls` may not import the handler, so that the table is a second one."""
    assert OUR_HANDLER == HANDLER
    assert set(OUR_KEYS) == set(HandlerSettings.model_fields)
    values = [
        *(-1, 0, 1, 5, 5.0, 5.5, "5", " 5 ", "5.0", "1e3", "", "x", None, True, False, [], [1], {}, math.nan, math.inf),
        *("auto", "AUTO", "cpu", "gpu", "GPU", *KINDS, "openvino-fp32", 2**31, 2**63, 10**30, "9" * 5000),
        *(PILLOW_MAX_PIXELS, PILLOW_MAX_PIXELS + 1, date(2026, 1, 1), b"5", b"cpu"),
    ]
    for key, check in OUR_KEYS.items():
        for value in values:
            try:
                HandlerSettings.model_validate({key: value})
                is_taken = True
            except ValidationError:
                is_taken = False
            assert (check(value) is None) == is_taken, (key, value)


@pytest.mark.parametrize(
    "line",
    [
        *('batchSize: "8"', "batchSize: 8.0", "batchSize:", "batchSize: true", "batchSize: 0", "batchSize: 3000000000"),
        *("maxBatchDelay: -1", "maxBatchDelay: 0", "responseTimeout: 0", "startupTimeout: 1m", "jobQueueSize: 0"),
        *('useJobTicket: "true"', "useVenv: 1", "deviceType: tpu", "parallelType: x", "deviceIds: [0, a]"),
        *("deviceIds: 0", "torchrun: 2", "torchrun: {nproc_per_node: 2}", "torchrun: {nnodes: x}", "handler: 5"),
        *("torchrun: {1: 2}", "minWorkers: 2", "maxWorkers: 2", "batchSize: 4\nbatchSize: 8", "handler: {a: 1, a: 2}"),
        *("minWorkers: 3\nmaxWorkers: 1", "1: 2", "[1]", "", "a: [", "x: !!python/name:os.system", "x: 2020-13-45"),
    ],
)
def test_model_setting_that_torchserve_cannot_use_is_an_error(line: str):
    findings = lint_model_config(line)
    assert findings and {finding.status for finding in findings} == {"error"}
    assert all("\n" not in str(finding) for finding in findings)


def test_model_settings_that_torchserve_takes_are_fine():
    text = "minWorkers: 1\nmaxWorkers: 2\ndeviceType: GPU\ndeviceIds: [0, 1]\nuseJobTicket: yes\nparallelType: tp\n"
    assert lint_model_config(f"{text}torchrun: {{nproc-per-node: 2, OMP_NUMBER_THREADS: 4}}\n") == []


def test_model_settings_that_a_merge_key_brings_are_judged():
    """TorchServe reads them: tests/server/test_ignored_settings.py."""
    text = "handler: &shared {top_k: 3}\n<<: {batchSize: 0, minWorkers: 1}\nmaxWorkers: 2\nbatchSize: 4\n"
    assert lint_model_config(text) == []
    assert only(lint_model_config(text.replace("maxWorkers", "max_workers"))[1:]).fix == "write maxWorkers"
    assert only(lint_model_config("<<: {batchSize: 0}\nmaxBatchDelay: 5\n")).key == "batchSize"


def test_what_has_no_size_is_read_no_further_than_settings_go(tmp_path: Path):
    for file in (Path("/dev/zero"), tmp_path / "large.yaml"):
        (tmp_path / "large.yaml").write_bytes(bytes(10 << 20 | 1))
        with pytest.raises(UsageError, match="has more than 10,485,760 bytes; expected a file of settings"):
            lint_file(file)


def test_command_tells_file_and_line_and_exits_1_on_errors_only(tmp_path: Path):
    config, model = tmp_path / "config.properties", tmp_path / "model-config.yaml"
    config.write_text("job_queue_size=5\n")
    model.write_text("\nbatch_size: 1\n")
    warned = CliRunner().invoke(app, ["lint", str(config)])
    assert (warned.exit_code, warned.output.count("\n")) == (0, 1)
    assert warned.output.startswith(f"{config}: warning: allowed_urls is not set")
    failed = CliRunner().invoke(app, ["lint", str(config), str(model), "--json"])
    assert failed.exit_code == 1
    assert [(entry["where"], entry["line"], entry["status"]) for entry in json.loads(failed.stdout)] == [
        (str(config), 0, "warning"),
        (str(model), 2, "error"),
    ]
    missing = CliRunner().invoke(app, ["lint", str(tmp_path / "none")])
    assert missing.exception.exit_code == 2 and "cannot be read (No such file" in str(missing.exception)


def test_command_looks_at_the_projects_file_unless_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(PROJECT)
    result = CliRunner().invoke(app, ["lint"])
    assert (result.exit_code, result.output) == (0, "config.properties: ok\n")


def test_settings_inside_an_archive_are_judged(tmp_path: Path):
    mar = tmp_path / "x.mar"
    with zipfile.ZipFile(mar, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"configFile": "mine.yaml"}}))
        archive.writestr("mine.yaml", "batch_size: 1\n")
    assert only(lint_archive(mar)).place == f"{mar}!mine.yaml:1"
    with zipfile.ZipFile(mar, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {}}))
    assert lint_archive(mar) == []


@pytest.mark.parametrize(("handler", "found"), [("handler.entry", ["handler.topk", "mine"]), ("image_classifier", [])])
def test_handler_settings_inside_an_archive_are_judged_where_the_handler_is_ours(tmp_path: Path, handler, found):
    with zipfile.ZipFile(tmp_path / "x.mar", "w") as archive:
        model = {"configFile": "model-config.yaml", "handler": handler}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        archive.writestr("model-config.yaml", "handler: {topk: 3}\nmine: {a: 1}\n")
    assert [finding.key for finding in lint_file(tmp_path / "x.mar")] == found


def test_doctor_tells_what_the_lint_finds(tmp_path: Path, archive: Path):
    config = tmp_path / "config.properties"
    config.write_text(f"{CLOSED}max_reqest_size=1\n")
    [finding] = doctor.check_settings(config, archive)
    assert (finding.name, finding.status, finding.fix) == ("settings", "error", "write max_request_size")
    assert finding.detail.startswith(f"{config}:2: max_reqest_size is no key")
    assert doctor.check_settings(PROJECT / "config.properties", archive) == []
    assert doctor.check_settings(tmp_path / "none", tmp_path / "none.mar") == []


def test_lint_needs_the_light_install_only(tmp_path: Path):
    (tmp_path / "model-config.yaml").write_text("handler: {engin: auto}\n")
    script = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "numpy", "PIL", "psutil", "ts", "model_archiver"]))
from imgcls.serving.lint import lint_file
from pathlib import Path
assert lint_file(Path("config.properties")) == []
assert len(lint_file(Path(sys.argv[1]))) == 1
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "model-config.yaml"], cwd=PROJECT, check=True)
