"""What Python source in an archive is noticed for: one row a rule, matched against the dotted names that it refers to.

A row judges the reference, not the call: `map(os.system, commands)` calls it too. What no table can list, such as
`getattr(os, name)`, is `python-hidden`, which `source` finds by itself.
"""

import re
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property

from imgcls.archive.scanning.findings import Severity

MAX_SOURCE_BYTES = 1 << 20
C, W = Severity.CRITICAL, Severity.WARNING


@dataclass(frozen=True)
class SourceRule:
    """One row; `at_import` is the severity where the line runs as soon as the module is imported, None is none."""

    name: str
    severity: Severity | None
    at_import: Severity
    why: str
    patterns: tuple[str, ...]

    def matches(self, dotted: str) -> bool:
        """Tells whether the rule is about this name; a name without a dot is a builtin's."""
        return self._expression.match(dotted) is not None

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        """All patterns in one; without any it matches nothing."""
        return re.compile("|".join(map(translate, self.patterns)) or "(?!)")


HIDDEN = SourceRule("python-hidden", C, C, "it hides what it refers to", ())
COMPUTED_IMPORT = SourceRule("python-import", W, W, "what it imports is only known when it runs", ())
UNPICKLES = SourceRule(
    "python-pickle",
    *(W, W, "loading a pickle runs what is in it"),
    (
        *("pickle.load*", "pickle.Unpickler", "_pickle.*", "cPickle.*", "dill.load*", "cloudpickle.load*"),
        *("joblib.load", "shelve.*", "pandas.read_pickle", "jsonpickle.*"),
        *("yaml.unsafe_load*", "yaml.full_load*", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.Loader"),
    ),
)

SOURCE_RULES = (
    SourceRule(
        "python-process",
        *(C, C, "it starts another program"),
        (
            *("os.system", "os.popen*", "os.exec*", "os.spawn*", "os.posix_spawn*", "os.fork*", "os.startfile"),
            *("posix.system", "posix.exec*", "nt.system", "subprocess.*", "_posixsubprocess.*", "pty.*"),
            *("asyncio.create_subprocess_*", "asyncio.subprocess.*", "pexpect.*", "plumbum.*"),
            *("pip.main", "pip._internal.*", "webbrowser.*", "distutils.spawn.*", "setuptools.setup"),
            *("multiprocessing.util.spawnv*", "torch.utils.collect_env.run*"),
        ),
    ),
    SourceRule(
        "python-eval",
        *(C, C, "it runs text or bytes as code"),
        (
            *(
                "eval",
                "exec",
                "compile",
                "execfile",
                "breakpoint",
                "builtins.eval",
                "builtins.exec",
                "builtins.compile",
            ),
            *(
                "marshal.load*",
                "types.CodeType",
                "types.FunctionType",
                "code.[Iic]*",
                "codeop.*",
                "runpy.*",
                "timeit.*",
            ),
            *("pdb.*", "bdb.*", "cProfile.run*", "profile.run*", "doctest.*", "sys.settrace", "sys.setprofile"),
        ),
    ),
    SourceRule(
        "python-import",
        *(W, W, "it loads code by its place, or from elsewhere"),
        (
            *("imp.load_*", "importlib.machinery.*Loader", "importlib.util.spec_from_*", "importlib.abc.*"),
            *("zipimport.*", "pkgutil.*", "site.addsitedir", "pkg_resources.*", "sys.meta_path", "sys.path_hooks"),
            *("torch.hub.*", "torch.package.*", "pydoc.locate", "pydoc.safeimport", "logging.config.*"),
        ),
    ),
    SourceRule(
        "python-native",
        *(W, W, "it calls compiled code by address or file"),
        (
            *(
                "ctypes.*",
                "_ctypes.*",
                "cffi.*",
                "mmap.PROT_EXEC",
                "torch.ops.load_library",
                "torch.classes.load_library",
            ),
            *("torch.utils.cpp_extension.*", "numpy.ctypeslib.*", "tensorflow.load_op_library"),
        ),
    ),
    SourceRule(
        "python-network",
        *(W, C, "it talks to other machines"),
        (
            *("socket.*", "_socket.*", "socketserver.*", "ssl.*", "http.client.*", "http.server.*", "xmlrpc.*"),
            *("urllib.request.*", "urllib.urlopen", "urllib2.*", "urllib3.*", "requests.*", "httpx.*", "aiohttp.*"),
            *("ftplib.*", "smtplib.*", "telnetlib.*", "imaplib.*", "poplib.*", "nntplib.*", "paramiko.*", "pycurl.*"),
            *("websocket.*", "websockets.*", "dns.*", "boto3.*", "botocore.*", "google.cloud.*", "azure.*", "wget.*"),
            *("gdown.*", "huggingface_hub.*", "torch.utils.model_zoo.*", "asyncio.open_connection"),
        ),
    ),
    SourceRule(
        "python-delete",
        *(None, C, "it deletes or moves files"),
        ("os.remove", "os.unlink", "os.rmdir", "os.removedirs", "os.truncate", "shutil.rmtree", "shutil.move"),
    ),
    UNPICKLES,
)

# Attributes through which Python's own sandboxes were left.
HIDDEN_ATTRIBUTES = frozenset(
    (
        *("__subclasses__", "__globals__", "__builtins__", "__code__", "__closure__"),
        *("gi_frame", "tb_frame", "f_globals", "f_builtins"),
    )
)
# Modules that are not handed around, nor asked for attributes by a name that is made up.
WATCHED_MODULES = frozenset(
    ("os", "posix", "nt", "subprocess", "pty", "builtins", "importlib", "ctypes", "socket", "marshal", "shutil")
)
