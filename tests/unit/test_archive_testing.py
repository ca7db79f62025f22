"""The in-process harness: small foreign archives, and what of this process each of them may see and change."""

import json
import logging
import os
import re
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.archive import isolation, testing, worker
from imgcls.archive.testing import Part, Request, load_archive
from imgcls.errors import ArchiveError

pytest_plugins = ["imgcls.archive.pytest_plugin"]

ECHO = """
def handle(data, context):
    return [repr(sorted(item.items())) for item in data] if data else None
"""
EAGER_HANDLER = """
import torch
from ts.torch_handler.base_handler import BaseHandler


class Scale(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([item["body"] for item in data], dtype=torch.float32)

    def explain_handle(self, data_preprocess, raw_data):
        return [{"explained": len(raw_data)}] * len(raw_data)

    def describe_handle(self):
        return {"model": type(self.model).__name__, "device": str(self.device)}
"""
EAGER_MODEL = """
import torch


class Times(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, numbers):
        return numbers * self.factor
"""

WriteMar = Callable[..., Path]


@pytest.fixture
def write_mar(tmp_path: Path) -> WriteMar:
    """write_mar("name", {"handler.py": code, …}, **what the manifest says else) -> NAME.mar, beside nothing of ours."""

    def write(name: str, files: dict[str, str | bytes], *, handler: str = "handler.py", **model: str) -> Path:
        manifest = {"model": {"modelName": name, "modelVersion": "2.0", "handler": handler, **model}}
        with zipfile.ZipFile(tmp_path / f"{name}.mar", "w") as file:
            file.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            for path, content in files.items():
                file.writestr(path, content)
        return tmp_path / f"{name}.mar"

    return write


def handler_of(body: str, *, top: str = "") -> dict[str, str]:
    """Returns a handler with this as the body of its function, for calls that are not the one at load time."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return {"handler.py": f"{top}\ndef handle(data, context):\n    if data is None:\n        return None\n{lines}\n"}


def test_a_function_as_handler_answers_a_batch(write_mar, serve_archive):
    served = serve_archive(write_mar("echo", {"code.py": ECHO}, handler="code:handle"), batch_size=3)
    answers = served.predict([b"\xff", {"a": 1}, {"file": b"1", "text": "2"}])
    assert [answer.status for answer in answers] == [200] * 3
    assert [answer.body.decode() for answer in answers] == [
        "[('body', bytearray(b'\\xff'))]",
        "[('body', {'a': 1})]",
        "[('file', bytearray(b'1')), ('text', bytearray(b'2'))]",
    ]
    assert (served.name, served.version, served.metrics("HandlerTime")) == ("echo", "2.0", [])


def test_a_base_handler_with_an_eager_model_predicts_explains_and_describes(
    write_mar, serve_archive, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "openvino.torch", None)  # BaseHandler tries it, which takes seconds
    torch.save({"factor": torch.tensor([3.0])}, tmp_path / "weights.pt")
    files = {"handler.py": EAGER_HANDLER, "model.py": EAGER_MODEL, "weights.pt": (tmp_path / "weights.pt").read_bytes()}
    mar = write_mar("times", files, modelFile="model.py", serializedFile="weights.pt")
    served = serve_archive(mar, batch_size=2)
    assert [answer.json() for answer in served.predict([[1, 2], [3, 4]])] == [[3, 6], [9, 12]]
    assert [answer.json() for answer in served.explain([[1], [2]])] == [{"explained": 2}] * 2
    assert served.describe().json() == {"model": "Times", "device": "cpu"}
    [metric] = served.metrics("HandlerTime")[:1]
    assert (metric.unit, metric.kind, metric.dimensions["ModelName"]) == ("Milliseconds", "GAUGE", "times")


def test_a_handler_of_torchserves_own_names_the_package_that_is_missing(write_mar, monkeypatch):
    for name in ("captum", "captum.attr"):  # an earlier test may have imported it
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("vision_handler", "image_classifier"):
        monkeypatch.delitem(sys.modules, f"ts.torch_handler.{name}", raising=False)
    mar = write_mar("builtin", {"weights.pt": b""}, handler="image_classifier", serializedFile="weights.pt")
    with pytest.raises(ArchiveError, match=r"ModuleNotFoundError: .*captum"), load_archive(mar):
        pass


def test_predictions_and_explanations_can_share_a_batch(write_mar, serve_archive):
    code = handler_of("return [context.get_request_header(i, 'explain') for i in range(len(data))]")
    served = serve_archive(write_mar("kinds", code), batch_size=2)
    answers = served.predict([b"", Request(kind="explain")])
    assert [answer.body for answer in answers] == [b"False", b"True"]


def test_status_phrase_headers_and_type_are_each_items_own(write_mar, serve_archive):
    code = handler_of("""
context.set_response_status(code=422, phrase="Too Odd", idx=1)
context.set_response_content_type(1, "text/csv")
context.set_response_header(1, "X-Reason", "odd")
return ["even", "a,b"]
""")
    good, odd = serve_archive(write_mar("statuses", code), batch_size=2).predict([b"", b""])
    assert (good.status, good.phrase, good.content_type, good.headers) == (200, "", "", {})
    assert (odd.status, odd.phrase, odd.content_type, odd.body) == (422, "Too Odd", "text/csv", b"a,b")
    assert odd.headers["x-reason"] == "odd"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("raise ValueError('no')", 503, "Prediction failed"),
        ("raise RuntimeError('CUDA error: out of memory')", 507, "Out of resources"),
        ("raise MemoryError", 507, "Out of resources"),
        ("from ts.utils.util import PredictionException\nraise PredictionException('mine', 409)", 409, "mine"),
        ("from ts.utils.util import PredictionException\nraise PredictionException('mine', 413)", 507, "mine"),
        ("return ['one too few']", 503, "number of batch response mismatched"),
        ("return {}", 503, "Invalid model predict output"),
        ("return [object(), object()]", 503, "Unsupported model output data type."),
    ],
)
def test_a_batch_that_fails_as_a_whole_is_answered_as_by_torchserve(write_mar, serve_archive, body, status, message):
    answers = serve_archive(write_mar("failing", handler_of(body)), batch_size=2).predict([b"", b""])
    assert [answer.status for answer in answers] == [status] * 2
    expected = {"code": status, "type": "InternalServerException", "message": message}
    assert [answer.json() for answer in answers] == [expected] * 2
    assert answers[0].content_type == "application/json"


def test_why_a_batch_failed_stands_in_the_log_of_the_test(write_mar, serve_archive, caplog):
    serve_archive(write_mar("failing", handler_of("raise ValueError('the reason')"))).predict([b""])
    assert "the reason" in caplog.text


def test_a_worker_that_has_ended_answers_no_more(write_mar, serve_archive):
    served = serve_archive(write_mar("ending", handler_of("raise SystemExit(3)")))
    with pytest.raises(ArchiveError, match=r"ending\.mar: the handler ends its worker \(SystemExit: 3\).* 500 Worker"):
        served.predict([b""])
    with pytest.raises(ArchiveError, match="load it again"):
        served.predict([b""])


def test_what_the_frontend_cannot_read_is_no_answer(write_mar, serve_archive):
    code = handler_of("context.set_response_status(code=400, phrase='Ungültig', idx=0)\nreturn ['']")
    with pytest.raises(ArchiveError, match="cannot read the handler's answer; use ASCII"):
        serve_archive(write_mar("phrase", code)).predict([b""])


def test_the_parts_of_a_stream_are_one_body(write_mar, serve_archive):
    code = handler_of(
        "send_intermediate_predict_response(['a'], context.request_ids, '', 200, context)\nreturn ['b']",
        top="from ts.handler_utils.utils import send_intermediate_predict_response",
    )
    [answer] = serve_archive(write_mar("stream", code)).predict([b""])
    assert (answer.body, answer.parts) == (b"ab", (b"a", b"b"))


def test_metrics_are_what_the_handler_recorded(write_mar, serve_archive):
    code = handler_of("""
context.metrics.add_counter("ImagesSeen", len(data))
context.metrics.add_time("DecodeTime", 1.5, idx=0, dimensions=[Dimension("Stage", "decode")])
return [""] * len(data)
""")
    code["handler.py"] = "from ts.metrics.dimension import Dimension\n" + code["handler.py"]
    first, second = (serve_archive(write_mar(name, code), batch_size=2) for name in ("first", "second"))
    for served in (first, second):
        served.predict([b"", b""])
        [seen] = served.metrics("ImagesSeen")
        assert (seen.value, seen.unit, seen.kind) == (2, "Count", "COUNTER")
        assert seen.dimensions == {"ModelName": served.name, "Level": "Model"}  # not the first archive's name
        [time_] = served.metrics("DecodeTime")
        assert (time_.value, time_.unit, time_.dimensions["Stage"]) == (1.5, "Milliseconds", "decode")
        assert [metric.name for metric in served.metrics()] == ["ImagesSeen", "DecodeTime", "PredictionTime"]


def test_a_metric_that_the_frontend_drops_is_an_error(write_mar, serve_archive):
    served = serve_archive(write_mar("metric", handler_of("context.metrics.add_counter('a-b', 1)\nreturn ['']")))
    assert served.predict([b""])[0].status == 200
    with pytest.raises(ArchiveError, match=r"the frontend drops this metric, .*]a-b\.Count:1"):
        served.metrics()


def test_two_open_archives_keep_their_modules_of_the_same_names(write_mar, serve_archive):
    """`handler`, `model` and the module imported at call time are each archive's own, and not the checkout's."""
    import handler as ours
    import model as our_model

    code = handler_of("import late\nreturn [f'{model.NAME} {late.NAME}']", top="import model")
    names = ("old", "new")
    mars = [write_mar(n, {**code, "model.py": f"NAME = {n!r}", "late.py": f"NAME = {n!r}"}) for n in names]
    old, new = map(serve_archive, mars)
    for _ in range(2):
        assert [served.predict([b""])[0].body for served in (old, new)] == [b"old old", b"new new"]
    with old.active():
        import model

        assert (model.NAME, Path(model.__file__).parent) == ("old", old.folder)
        assert new.predict([b""])[0].body == b"new new"
        assert sys.modules["model"] is model
    assert (sys.modules["handler"], sys.modules["model"]) == (ours, our_model)
    assert "late" not in sys.modules


def test_inside_active_the_test_has_the_handlers_modules(write_mar, serve_archive):
    code = handler_of("import counter\ncounter.COUNT += 1\nreturn [str(counter.COUNT)]")
    served = serve_archive(write_mar("shared", {**code, "counter.py": "COUNT = 0"}))
    with served.active():
        import counter

        counter.COUNT = 41
        assert served.predict([b""])[0].body == b"42"
    assert "counter" not in sys.modules


def test_modules_that_a_server_would_not_have_are_not_found(write_mar, serve_archive, tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    import beside

    mar = write_mar("beside", handler_of("import beside\nreturn ['found']"))
    assert serve_archive(mar).predict([b""])[0].status == 503
    assert serve_archive(mar, python_path=[tmp_path]).predict([b""])[0].body == b"found"
    assert sys.modules.pop("beside") is beside


def test_a_folder_that_the_handler_puts_on_the_path_stays_its_own(write_mar, serve_archive):
    top = "import os, sys\nsys.path.insert(0, os.path.join(os.getcwd(), 'src'))\nimport at_load"
    code = handler_of("import at_call\nat_call.COUNT += 1\nreturn [f'{at_load.NAME} {at_call.COUNT}']", top=top)
    files = {**code, "src/at_load.py": "NAME = 'loaded'", "src/at_call.py": "COUNT = 0"}
    served = serve_archive(write_mar("path", files))
    assert [served.predict([b""])[0].body for _ in range(2)] == [b"loaded 1", b"loaded 2"]
    assert not {"at_load", "at_call"} & sys.modules.keys() and not any("imgcls-" in entry for entry in sys.path)


def test_what_a_handler_changes_of_the_process_is_put_back_and_kept_for_its_next_call(write_mar, serve_archive):
    top = """
import logging, os, torch, warnings
os.environ["ODD_VARIABLE"] = "1"
os.environ.pop("HOME", None)
logging.getLogger().addHandler(logging.NullHandler())
logging.getLogger("ts").setLevel(logging.ERROR)
warnings.simplefilter("error")
torch.set_num_threads(3)
torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)
"""
    code = handler_of(
        "return [{'variable': os.environ.get('ODD_VARIABLE'), 'home': os.environ.get('HOME'), 'cwd': os.getcwd(), "
        "'threads': torch.get_num_threads(), 'grad': torch.is_grad_enabled(), 'dtype': str(torch.get_default_dtype()), "
        "'level': logging.getLogger('ts').level, 'path': os.environ['PYTHONPATH']}]",
        top=top,
    )

    def read() -> tuple[Any, ...]:
        loggers = [(logger.level, tuple(logger.handlers)) for logger in (logging.getLogger(), logging.getLogger("ts"))]
        settings = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
        return dict(os.environ), Path.cwd(), list(sys.path), loggers, warnings.filters[:], settings

    before = read()
    served = serve_archive(write_mar("changing", code))
    for _ in range(2):
        [answer] = served.predict([b""])
        assert answer.json() == {
            **{"variable": "1", "home": None, "cwd": str(served.folder), "threads": 3, "grad": False},
            **{"dtype": "torch.float64", "level": logging.ERROR, "path": str(served.folder)},
        }
        assert read() == before


def test_a_warning_is_no_error_inside_a_handler(write_mar, serve_archive):
    code = handler_of(
        """
warnings.warn("old", DeprecationWarning)
warnings.warn("mine")
open(__file__)
return ["warned"]
""",
        top="import warnings",
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error")
        assert serve_archive(write_mar("warning", code)).predict([b""])[0].body == b"warned"
    assert [str(warning.message) for warning in seen] == ["mine"]


def test_the_servers_variables_and_metrics_configuration_count(write_mar, serve_archive, tmp_path):
    (tmp_path / "metrics.yaml").write_text(
        "dimensions: []\nmodel_metrics:\n  counter:\n    - {name: Listed, unit: count, dimensions: [Kind]}\n"
    )
    code = handler_of(
        """
context.metrics.get_metric("Listed").add_or_update(4, ["x"])
return [os.environ["ODD_SETTING"]]
""",
        top="import os",
    )
    served = serve_archive(
        write_mar("settings", code), environment={"ODD_SETTING": "on"}, metrics_config=tmp_path / "metrics.yaml"
    )
    assert served.predict([b""])[0].body == b"on"
    [metric] = served.metrics("Listed")
    assert (metric.value, metric.dimensions) == (4, {"Kind": "x"})


def test_bodies_are_parsed_as_the_configuration_says(write_mar, serve_archive):
    mar = write_mar("echo", {"handler.py": ECHO})
    broken = Request(b"{", content_type="application/json")
    parsed, raw = (serve_archive(mar, batch_size=2, decode_input_request=value) for value in (True, False))
    assert [answer.body for answer in parsed.predict([[1], broken])] == [
        b"[('body', [1])]",
        b"[('body', bytearray(b'{'))]",
    ]
    assert raw.predict([[1]])[0].body == b"[('body', bytearray(b'[1]'))]"


def test_the_batch_size_is_the_archives_and_a_larger_batch_is_refused(write_mar, serve_archive):
    files = {"handler.py": ECHO, "config.yaml": "batchSize: 2"}
    served = serve_archive(write_mar("sized", files, configFile="config.yaml"))
    assert len(served.predict([b"", b""])) == served.service.context.system_properties["batch_size"] == 2
    with pytest.raises(ValueError, match="a batch of 3 requests; expected 1 to 2"):
        served.predict([b"", b"", b""])
    with pytest.raises(ValueError, match="a batch of 0 requests"):
        served.predict([])


@pytest.mark.parametrize("value", ['"8"', "8.0", "2.5", "0", "-1", "", "x", "[8]", "true"])
def test_a_batch_size_that_torchserve_ignores_is_1(write_mar, serve_archive, value: str):
    """tests/server/test_ignored_settings.py asks the frontend."""
    files = {"handler.py": ECHO, "config.yaml": f"batchSize: {value}"}
    served = serve_archive(write_mar("sized", files, configFile="config.yaml"))
    assert served.batch_size == 1 and type(served.batch_size) is int
    assert served.predict([b""])[0].status == 200


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda served: served.predict(["text"]), TypeError, r"a request is a str; expected bytes, or Request"),
        (lambda served: served.predict([object()]), TypeError, "not JSON serializable"),
        (lambda served: Request(b"a=1", content_type="application/x-www-form-urlencoded"), ValueError, "give fields"),
    ],
)
def test_a_request_that_says_nothing_clear_is_refused(write_mar, serve_archive, make, error, message):
    served = serve_archive(write_mar("echo", {"handler.py": ECHO}))
    with pytest.raises(error, match=message):
        make(served)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"handler.py": "import no_such"}, r"bad\.mar: its handler cannot be loaded: .*: No module named 'no_such'"),
        ({"handler.py": "def broken("}, r"SyntaxError: "),
        ({"handler.py": "class A: pass\nclass B: pass"}, r"Expected only one class"),
        ({"handler.py": "import sys\nsys.exit(1)"}, r"SystemExit: 1"),
        ({"other.py": ECHO}, r"No module named 'code_of_bad'"),
    ],
)
def test_an_archive_that_cannot_be_loaded_is_one_line(write_mar, files, message):
    threads, path = torch.get_num_threads(), list(sys.path)
    mar = write_mar("bad", files, handler="handler.py" if "handler.py" in files else "code_of_bad.py")
    with pytest.raises(ArchiveError, match=message) as caught, load_archive(mar):
        pass
    assert "\n" not in str(caught.value)
    assert (torch.get_num_threads(), sys.path) == (threads, path)


def test_what_is_no_archive_is_refused(write_mar, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mar").write_text("text")
    unsafe = write_mar("unsafe", {"handler.py": ECHO, "../up.py": ""})
    manifest = "MANIFEST.json or the configuration it names cannot be read"
    wanted = {"none.mar": "no such", "text.mar": "cannot be read", "empty": manifest, unsafe.name: r"\.\./up\.py"}
    for name, message in wanted.items():
        with pytest.raises(ArchiveError, match=message), load_archive(tmp_path / name):
            pass
    assert not (tmp_path.parent / "up.py").exists()


def test_a_folder_is_used_as_it_is_and_stays_clean(tmp_path, serve_archive):
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelName": "folder", "handler": "handler"}}')
    (tmp_path / "handler.py").write_text(ECHO)
    served = serve_archive(str(tmp_path))
    assert (served.folder, served.predict([b""])[0].status) == (tmp_path, 200)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["MANIFEST.json", "MAR-INF", "handler.py"]


def test_nothing_is_left_when_an_archive_is_closed(write_mar):
    with load_archive(write_mar("echo", {"handler.py": ECHO})) as served:
        folder = served.folder
        assert folder.is_dir()
    assert not folder.parent.exists()
    assert not [entry for entry in sys.path_importer_cache if entry.startswith(str(folder))]
    with pytest.raises(ArchiveError, match="it is closed; ask inside the with block"):
        served.predict([b""])


def test_a_file_of_a_form_keeps_its_type(write_mar, serve_archive):
    code = handler_of("return [context.get_request_header(0, 'image')]")
    [answer] = serve_archive(write_mar("form", code)).predict([{"image": Part(b"", "image/png")}])
    assert answer.json() == {"content-type": "image/png"}


def test_an_archive_of_ours_can_be_open_twice_and_runs_its_own_code(archive, served, encode):
    from PIL import Image

    image = encode(Image.new("RGB", (8, 8), (0, 0, 255)), "PNG")
    with load_archive(archive) as other:
        assert other.predict([image]) == served.predict([image])
        for each in (other, served):
            with each.active():
                import model.classifier

                assert Path(model.classifier.__file__).is_relative_to(each.folder)


def test_the_harness_needs_no_pytest():
    assert not [module for module in (testing, isolation, worker) if hasattr(module, "pytest")]


def read_examples() -> dict[str, str]:
    """Returns the files that docs/testing-handlers.md shows, by name."""
    text = (Path(__file__).parents[2] / "docs" / "testing-handlers.md").read_text()
    shown = re.findall(r"^`(test_\w+\.py)`[^\n]*\n(?:[^ \n][^\n]*\n)*\n((?:    [^\n]*\n|\n)+)", text, re.MULTILINE)
    return {name: textwrap.dedent(code) for name, code in shown}


def test_the_examples_of_the_documentation_pass(archive, tmp_path, monkeypatch):
    """Run by a pytest within this one, as torch is imported already; its options are not this project's."""
    examples = read_examples()
    assert list(examples) == ["test_imgcls_archive.py", "test_any_archive.py"]
    for name, code in examples.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "model_store").mkdir()
    (tmp_path / "model_store" / "imgcls.mar").symlink_to(archive)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-c", "pytest.ini", *examples]) == 0
