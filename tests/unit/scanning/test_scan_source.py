"""Python source, judged without running it."""

import textwrap
from pathlib import Path

import pytest
import ts

from imgcls.archive.scanning.source import check_source

PROJECT = Path(__file__).parents[3]


def judge(source: str | bytes) -> set[tuple[str, str]]:
    data = source if isinstance(source, bytes) else textwrap.dedent(source).encode()
    return {(finding.rule, str(finding.severity)) for finding in check_source("h.py", data)}


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.system('id')",
        "import os as o\no.system('id')",
        "from os import system as s\ns('id')",
        "from os import system",  # for another module of the archive to call
        "import os\nrun = os.system\nrun('id')",
        "import os\nlist(map(os.system, ['id']))",
        "import subprocess\nsubprocess.run(['id'])",
        "from subprocess import Popen, PIPE\nPopen('id')",
        "import subprocess as s\nclass H:\n    def initialize(self, c):\n        s.check_output('id')",
        "import pty\npty.spawn('/bin/sh')",
        "__import__('os').system('id')",
        "import importlib\nimportlib.import_module('subprocess').run('id')",
        "import os\ngetattr(os, 'system')('id')",
        "import os\nvars(os)['system']('id')",
        "import os\nos.__dict__['system']('id')",
        "import sys\nsys.modules['os'].system('id')",
        "from helper import os\nos.system('id')",
        "import helper\nhelper.os.system('id')",
        "from .helper import os\nos.popen('id')",
        "import os\n@os.system\ndef f(): pass",
        "import os\nf = lambda x: os.execv(x, [])",
        "import os\ndef f(x=os.system('id')): pass",
        "import asyncio\nasync def f():\n    await asyncio.create_subprocess_shell('id')",
        "import torch, os\nclass A:\n    def __reduce__(self):\n        return os.system, ('id',)",
        "class A:\n    import os\n    def f(self):\n        self.os.system('id')",
        "class A:\n    try:\n        import subprocess as s\n    finally:\n        pass\nA().s.run('id')",
        "import os\nlocals()['os'].system('id')",
        "import os\nvars()['os'].system('id')",
        "import sys\nsys.modules.get('os').system('id')",
        "import os\nos.__dict__.get('system')('id')",
        "(m := __import__('os')).system('id')",
        "import operator, shutil\noperator.attrgetter('os.system')(shutil)('id')",
        "from torch.utils import collect_env\ncollect_env.run('id')",
    ],
)
def test_starting_a_program_is_critical_however_it_is_spelled(source: str) -> None:
    assert ("python-process", "critical") in judge(source)


@pytest.mark.parametrize(
    "source",
    [
        "import os\ngetattr(os, 'sys' + 'tem')('id')",
        "import os\ngetattr(os, ''.join(['sys', 'tem']))('id')",
        "import os\ngetattr(os, 'metsys'[::-1])('id')",
        "import os\ngetattr(os, ''.join(map(chr, [115, 121])))('id')",
        "import os\nname = input()\ngetattr(os, name)('id')",
        "import sys\nname = input()\nsys.modules.get(name)",
        "import builtins\ngetattr(builtins, 'ev' + x)('1')",
        "import sys\nsys.modules[x].system('id')",
        "globals()[x]('1')",
        "[c for c in ().__class__.__base__.__subclasses__()]",
        "print.__self__.__dict__; f.__globals__['os']",
        "import sys; sys._getframe().f_builtins['eval']('1')",
        "import os; os.__getattribute__('sys' + 'tem')('id')",
        "from os import *",
        "import subprocess\ncall(subprocess)",
        "import os\nmodules = [os]",
    ],
)
def test_hiding_what_is_called_is_critical(source: str) -> None:
    assert ("python-hidden", "critical") in judge(source)


@pytest.mark.parametrize("text", ["'sys' + 'tem'", "''.join(['sys', 'tem'])", "'metsys'[::-1]", "f'sys{\"tem\"}'"])
def test_a_name_made_of_constants_is_read(text: str) -> None:
    assert ("python-process", "critical") in judge(f"import os\ngetattr(os, {text})('id')")


@pytest.mark.parametrize(
    "source",
    ["eval('1')", "__builtins__['eval']('1')", "exec(x)", "compile(x, '', 'exec')", "import marshal\nmarshal.loads(x)"],
)
def test_running_text_as_code_is_critical(source: str) -> None:
    assert ("python-eval", "critical") in judge(source)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("import importlib\nimportlib.import_module(name)", "python-import"),
        ("__import__(name)", "python-import"),
        ("import torch\ntorch.hub.load('a/b', 'c')", "python-import"),
        ("import ctypes\nctypes.CDLL('x.so')", "python-native"),
        ("import torch\ntorch.ops.load_library('x.so')", "python-native"),
        ("import pickle\ndef f(x): return pickle.load(x)", "python-pickle"),
        ("import torch\ndef f(x): return torch.load(x)", "python-pickle"),
        ("import torch\ndef f(x): return torch.load(x, weights_only=False)", "python-pickle"),
        ("import numpy as np\nnp.load(x, allow_pickle=True)", "python-pickle"),
        ("import yaml\nyaml.load(x, Loader=yaml.FullLoader)", "python-pickle"),
        ("import yaml\nyaml.load(x)", "python-pickle"),
        ("import requests\ndef f(): return requests.get('http://x')", "python-network"),
        ("import socket\ndef f(): return socket.socket()", "python-network"),
    ],
)
def test_what_honest_handlers_do_too_is_a_warning(source: str, rule: str) -> None:
    assert judge(source) == {(rule, "warning")}


@pytest.mark.parametrize(
    "source",
    [
        "import urllib.request\nurllib.request.urlopen('http://x')",
        "import requests\nclass H:\n    weights = requests.get('http://x')",
        "import socket\ndef f(s=socket.socket()): pass",
    ],
)
def test_talking_to_other_machines_while_being_imported_is_critical(source: str) -> None:
    assert ("python-network", "critical") in judge(source)


def test_deleting_files_while_being_imported_is_critical() -> None:
    assert judge("import shutil\ndef f(x): shutil.rmtree(x)") == set()
    assert judge("import shutil\nshutil.rmtree('x')") == {("python-delete", "critical")}


@pytest.mark.parametrize(
    "source",
    [
        "import re\npattern = re.compile('x')",
        "import torch\nmodel = torch.compile(model)\nmodel.eval()",
        "import torch\nstate = torch.load(f, weights_only=True)",
        "import numpy\nnumpy.load(f)\nnumpy.load(f, allow_pickle=False)",
        "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)\nyaml.safe_load(f)",
        "import os\nos.path.join('a', os.environ.get('B', ''))\nhasattr(os, 'sched_getaffinity')",
        "def preprocess(self, requests):\n    return [request.get('data') for request in requests]",
        "def preprocess(self, requests):\n    return requests.get('data')",
        "class H:\n    def f(self, name):\n        return getattr(self, name)",
        "import importlib\nimportlib.import_module('json')",
        "class H:\n    import json\n    def f(self, name):\n        return self.json.loads(vars(self).get(name))",
        "import operator\noperator.attrgetter('path')(entry)\nprint('{a}'.format(**locals()))",
        "from .requests import parse\nparse()",
        "from handler.request import read_item\nread_item()",
        "import transformers\ntransformers.AutoModel.from_pretrained(model_dir)",
    ],
)
def test_ordinary_code_passes(source: str) -> None:
    assert judge(source) == set()


@pytest.mark.parametrize(
    "source",
    [
        b"print 'Python 2'",
        b"def (",
        b"\x00",
        b"\xff\xfe",
        b"# coding: nonsense\n",
        b"x = " + b"(" * 5000,
        b"x = " + b"-" * 100_000 + b"1",
        b"x = 'a'" + b" + 'a'" * 50_000,
        b"#" * (1 << 20) + b"#",
    ],
)
def test_source_that_cannot_be_read_needs_a_decision(source: bytes) -> None:
    assert judge(source) == {("source-unreadable", "warning")}


def test_source_in_another_encoding_is_read_as_python_reads_it() -> None:
    # "os.system" with an escape of UTF-7
    assert judge(b"# coding: utf-7\nimport os\n" + b"+AG8AcwAuAHMAeQBzAHQAZQBt-('id')\n") >= {
        ("python-process", "critical")
    }


def test_messages_say_where_and_when() -> None:
    source = b"import os\nclass H:\n    def initialize(self, c):\n        os.system('id')\nos.system('id')\n"
    messages = [finding.message for finding in check_source("h.py", source)]
    assert messages == [
        "line 4, in H.initialize: os.system: it starts another program",
        "line 5, when it is imported: os.system: it starts another program",
    ]


def test_our_own_travelling_code_needs_no_waiver() -> None:
    for file in (*(PROJECT / "model").rglob("*.py"), *(PROJECT / "handler").rglob("*.py")):
        blocking = [finding for finding in check_source(file.name, file.read_bytes()) if finding.is_blocking]
        assert blocking == [], file


def test_torchserves_own_handlers_are_not_critical() -> None:
    for file in (Path(ts.__file__).parent / "torch_handler").glob("*.py"):
        severities = {str(finding.severity) for finding in check_source(file.name, file.read_bytes())}
        assert "critical" not in severities, file
