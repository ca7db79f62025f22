"""Makes this process a worker of one archive for a while, and itself again.

While an isolation is active, the archive's modules stand under their names, whatever this process has imported under
them; `sys.path`, the working folder and the environment are a worker's; what the handler changes of these, of logging
and of torch's settings counts. Afterwards all of it is put back, and kept for the next time. So a handler that imports
at call time finds its own archive's modules, and several archives can be open at once.

Not kept apart: what lies outside Python's reach, as signal handlers, torch's inter-op threads and registered operators,
and threads that the handler leaves running.
"""

import functools
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from imgcls.archive.worker import metric_defaults

State = dict[Any, Any]

_LOCK = threading.RLock()  # there is one process, whoever's worker it is
_REMOVED = object()
# Never an archive's: what runs it, and what Python finds before it looks at sys.path.
_SHARED = {"__main__", "torch", "ts", *sys.builtin_module_names}
_QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # as Python starts
_TORCH: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "grad": (torch.is_grad_enabled, torch.set_grad_enabled),
    "dtype": (torch.get_default_dtype, torch.set_default_dtype),
}


class Isolation:
    """One archive's side of this process.

    Args:
        folder: the unpacked archive.
        python_path: what $PYTHONPATH holds on the server; it stands before the archive there.
        environment: variables of the server.
    """

    def __init__(self, folder: Path, *, python_path: Sequence[Path] = (), environment: Mapping[str, str]) -> None:
        self._own = tuple(str(path.absolute()) for path in (*python_path, folder))
        self._is_active = False
        self._modules: dict[str, ModuleType] = {}
        self._changes: list[State] = [
            {"path": [*self._own, *_read_bare_path()], "cwd": str(folder), "bytecode": True},
            {"PYTHONPATH": os.pathsep.join(self._own), **environment},
            {("", "level"): logging.INFO},  # model_service_worker.py sets it; metrics are lines of this level
            {},
            {name: [] for name in metric_defaults()},
        ]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes this process the archive's worker; in other threads, others wait for their turn."""
        with _LOCK:
            if self._is_active:
                yield
                return
            outside, modules, hidden = [read() for read, _ in _ASPECTS], dict(sys.modules), set[str]()
            self._is_active = True
            try:
                with warnings.catch_warnings():
                    self._enter(outside)
                    hidden = self._hide(outside[0])
                    sys.modules.update(self._modules)
                    yield
            finally:
                self._is_active = False
                inside = [read() for read, _ in _ASPECTS]
                self._changes = [_compare(*states) for states in zip(outside, inside, self._changes, strict=True)]
                for (_, write), state in zip(_ASPECTS, outside, strict=True):
                    write(state)
                self._put_back(modules, hidden=hidden)

    def close(self) -> None:
        """Forgets the archive's modules."""
        self._modules.clear()
        for entry in [entry for entry in sys.path_importer_cache if self._holds(entry)]:
            del sys.path_importer_cache[entry]

    def _enter(self, outside: Sequence[State]) -> None:
        for (_, write), state, changes in zip(_ASPECTS, outside, self._changes, strict=True):
            write({key: value for key, value in (state | changes).items() if value is not _REMOVED})
        warnings.resetwarnings()
        for category in _QUIET:
            warnings.simplefilter("ignore", category)

    def _hide(self, outside: State) -> set[str]:
        """Takes modules away that a worker would find elsewhere, or not at all; returns their top-level names."""
        folders = {str(Path(outside["cwd"]) / entry) for entry in {*outside["path"]} - {*sys.path}}
        loaded = list(sys.modules.items())  # a thread of somebody's may import meanwhile
        found = {name for name, module in loaded if "." not in name and _locate(module) in folders}
        own = {name for entry in sys.path if self._holds(entry) for name in _list_modules(entry)}
        hidden = (found | own) - _SHARED
        for name in [name for name, _ in loaded if name.partition(".")[0] in hidden]:
            del sys.modules[name]
        return hidden

    def _put_back(self, modules: Mapping[str, ModuleType], *, hidden: set[str]) -> None:
        """Keeps the archive's modules, and leaves what was imported of the installed packages where it is."""
        new = {name: module for name, module in list(sys.modules.items()) if modules.get(name) is not module}
        self._modules = {
            name: module
            for name, module in new.items()
            if name.partition(".")[0] in hidden or self._holds(_locate(module))
        }
        for name in self._modules:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in modules.items() if name not in sys.modules})

    def _holds(self, path: str) -> bool:
        return any(path == own or path.startswith(own + os.sep) for own in self._own)


def _compare(outside: State, inside: State, changes: State) -> State:
    """Returns what is other inside than outside, now or once."""
    removed = dict.fromkeys((outside.keys() | changes.keys()) - inside.keys(), _REMOVED)
    changed = {key: value for key, value in inside.items() if key in changes or value != outside.get(key, _REMOVED)}
    return {**changed, **removed}


def _locate(module: ModuleType) -> str:
    """Returns the folder that a module or package was found in; empty where there is none."""
    attributes = getattr(module, "__dict__", {})  # not getattr: some modules import when they are asked
    paths = [*(attributes.get("__path__") or ()), attributes.get("__file__")]
    return str(Path(paths[0]).absolute().parent) if isinstance(paths[0], str) else ""


def _list_modules(entry: str) -> set[str]:
    """Returns the top-level names that Python imports from this folder rather than from elsewhere."""
    names = {path.name.partition(".")[0] for path in Path(entry).iterdir()} if Path(entry).is_dir() else set()
    specs = {name: PathFinder.find_spec(name, [entry, *sys.path]) for name in names if name.isidentifier()}
    places = {name: [spec.origin, *(spec.submodule_search_locations or ())] for name, spec in specs.items() if spec}
    return {name for name, found in places.items() if any(str(place).startswith(entry + os.sep) for place in found)}


@functools.cache
def _read_bare_path() -> tuple[str, ...]:
    """Returns `sys.path` as a new Python of this environment has it, without a script's folder or $PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", "import json, sys; print(json.dumps(sys.path))"]
    return tuple(json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout))


def _read_process() -> State:
    return {"path": sys.path[:], "cwd": str(Path.cwd()), "bytecode": sys.dont_write_bytecode}


def _write_process(state: State) -> None:
    sys.path[:] = state["path"]
    os.chdir(state["cwd"])
    sys.dont_write_bytecode = state["bytecode"]


def _read_environment() -> State:
    return dict(os.environ)


def _write_environment(state: State) -> None:
    for name in os.environ.keys() - state.keys():
        del os.environ[name]
    os.environ.update(state)


def _read_loggers() -> State:
    """Returns level, handlers and switches of every logger; the root's name is empty."""
    known = {"": logging.getLogger(), **logging.Logger.manager.loggerDict}
    loggers = {name: logger for name, logger in known.items() if isinstance(logger, logging.Logger)}
    return {
        (name, attribute): list(value) if isinstance(value := getattr(logger, attribute), list) else value
        for name, logger in loggers.items()
        for attribute in ("level", "handlers", "disabled", "propagate")
    }


def _write_loggers(state: State) -> None:
    for (name, attribute), value in state.items():
        logger = logging.getLogger(name)
        if getattr(logger, attribute) != value:
            logger.setLevel(value) if attribute == "level" else setattr(logger, attribute, value)


def _read_torch() -> State:
    return {name: read() for name, (read, _) in _TORCH.items()}


def _write_torch(state: State) -> None:
    for name, (read, write) in _TORCH.items():
        if read() != state[name]:
            write(state[name])


def _read_metric_defaults() -> State:
    return {name: value[:] for name, value in metric_defaults().items()}


def _write_metric_defaults(state: State) -> None:
    for name, value in metric_defaults().items():
        value[:] = state[name]


_ASPECTS: tuple[tuple[Callable[[], State], Callable[[State], None]], ...] = (
    (_read_process, _write_process),
    (_read_environment, _write_environment),
    (_read_loggers, _write_loggers),
    (_read_torch, _write_torch),
    (_read_metric_defaults, _write_metric_defaults),
)
