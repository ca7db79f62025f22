"""The state folder: everything that belongs to one server, and what the other commands know it by.

.imgcls/serve/
  .imgcls-state       the mark: this folder is imgcls', which may empty it
  state.json          who serves what, where (ServerState); written atomically, removed at stop
  key_file.json       the three tokens; TorchServe writes it into its working directory, which is this folder
  config.properties   the configuration that the server really got
  log4j2.xml  logs/   how it logs, and its logs
  tmp/                its temporary folder: sockets, unpacked archives
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError

from imgcls.errors import ServingError, UsageError
from imgcls.files import write_atomic
from imgcls.serving.errors import AlreadyRunningError, NotRunningError
from imgcls.serving.ports import Ports

DEFAULT_FOLDER = Path(".imgcls/serve")
STATE_FILE = "state.json"
MARK_FILE = ".imgcls-state"
# A Unix socket's path is held to 107 bytes (104 on macOS); `.ts.sock.PORT` takes up to 15 of them.
LONGEST_TEMPORARY_PATH_BYTES = 88
CREATE_TIME_TOLERANCE_S = 2.0
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
START_FIELD = 19  # of /proc/PID/stat behind the command's name: ticks from the boot to the process's start


class ServerTrust(BaseModel):
    """Whom a server trusts, and who had signed the archive that it was started with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["off", "hash", "signed"]
    file: Path | None  # None: there is no trust file, and `hash` holds
    signer: str | None  # under `signed`

    def __str__(self) -> str:
        """Returns it for people."""
        signer = f", signer {self.signer}" if self.signer else ""
        return f"{self.policy}{signer}{f', {self.file}' if self.file else ''}"


class ServerState(BaseModel):
    """One server: its process, its model, and where it is reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server_id: str  # stands in the environment of each of its processes
    pid: int  # of Java, TorchServe's frontend
    created_s: float  # when that process was created, in seconds since the epoch: a pid alone may be another's by now
    started: str | None = None  # the same by a clock that nobody sets (read_start); None: not told, or an older state
    ports: Ports
    inference_url: str
    management_url: str
    token_required: bool
    archive: Path
    model: str
    version: str
    temporary: Path
    trust: ServerTrust | None = None  # None: started by an imgcls that knew no trust


class StateFolder:
    """The files of one server; the folder itself is made, and marked as ours, when a server is started.

    Nothing is removed from a folder that is not ours: someone may have named one with files of their own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.mark_file = self.path / MARK_FILE
        self.state_file = self.path / STATE_FILE
        self.key_file = self.path / "key_file.json"
        self.config_file = self.path / "config.properties"
        self.log_config_file = self.path / "log4j2.xml"
        self.logs = self.path / "logs"
        self.console_log = self.logs / "console.log"
        self.model_log = self.logs / "model_log.log"
        self.server_log = self.logs / "ts_log.log"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second start out of this folder; the kernel lets go when the process ends, however it does.

        Raises:
            AlreadyRunningError: another process is starting a server here.
            UsageError: the folder holds files of someone else.
            ServingError: the folder cannot be made.
        """
        try:
            self.claim()
            file = (self.path / "lock").open("w")
        except OSError as err:
            raise ServingError(
                f"{self.path}: the state folder cannot be made ({err}); choose one with --state"
            ) from err
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise AlreadyRunningError(
                    f"{self.path}: another imgcls serve is starting a server here; wait for it, or use --state DIR"
                ) from err
            yield

    def is_foreign(self) -> bool:
        """Tells whether the path holds something that no server of ours has left."""
        if self.mark_file.exists() or not self.path.is_dir():
            return False
        try:
            return self.read() is None and any(self.path.iterdir())
        except ServingError:  # a state.json that is not ours
            return True

    def prepare(self) -> None:
        """Makes the folder ready for a new server: old logs and tokens go, and only its owner may look into it.

        Raises:
            UsageError: the folder holds files of someone else.
            ServingError: it cannot be made.
        """
        try:
            self.claim()
            self.path.chmod(0o700)  # it holds tokens
            shutil.rmtree(self.logs, ignore_errors=True)
            self.logs.mkdir()
            self.key_file.unlink(missing_ok=True)
        except OSError as err:
            raise ServingError(
                f"{self.path}: the state folder cannot be made ({err}); name another with --state"
            ) from err

    def claim(self) -> None:
        """Makes the folder, and marks it as ours.

        Raises:
            UsageError: it holds files of someone else.
            OSError: it cannot be made.
        """
        if self.is_foreign():
            raise UsageError(
                f"{self.path}: this folder holds files that are not imgcls'; --state wants a folder of its own, "
                "new or empty, as its files are overwritten and removed"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.mark_file.touch()

    @property
    def is_deep(self) -> bool:
        """Whether the sockets of a temporary folder in here would have too long a path."""
        return len(os.fsencode(self.path / "tmp")) > LONGEST_TEMPORARY_PATH_BYTES

    def make_temporary(self) -> Path:
        """Makes the server's own temporary folder: in the state folder, or a short path where that one is too deep."""
        inside = self.path / "tmp"
        if self.is_deep:
            return Path(tempfile.mkdtemp(prefix="imgcls-"))
        shutil.rmtree(inside, ignore_errors=True)
        inside.mkdir()
        return inside

    def write(self, state: ServerState) -> None:
        """Writes state.json.

        Raises:
            ServingError: a path in it is no text.
        """
        try:
            text = state.model_dump_json(indent=2)
        except PydanticSerializationError as err:
            raise ServingError(f"{self.path}, or the archive's path, is not UTF-8; serve with other names") from err
        write_atomic(self.state_file, text + "\n")

    def read(self) -> ServerState | None:
        """Returns the recorded server, whether or not it is alive; None when there is none.

        Raises:
            ServingError: state.json is broken.
        """
        try:
            text = self.state_file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise ServingError(f"{self.state_file}: cannot be read ({err})") from err
        try:
            return ServerState.model_validate_json(text)
        except ValidationError as err:
            reason = err.errors(include_url=False)[0]["msg"]
            raise ServingError(
                f"{self.state_file}: is broken ({reason}); end its java process if one runs, and remove the file"
            ) from err

    def read_running(self) -> ServerState:
        """Returns the recorded server, which is alive.

        Raises:
            NotRunningError: there is none, or its process is gone.
            ServingError: state.json is broken.
        """
        state = self.read()
        if state is None:
            raise NotRunningError(
                f"no server was started with the state folder {self.path}; start one with imgcls serve"
            )
        if find_process(state) is None:
            raise NotRunningError(
                f"the server of {self.path} is gone: its process {state.pid} has ended without imgcls stop; "
                f"see {self.console_log}, and start it again with imgcls serve"
            )
        return state

    def forget(self, temporary: Path) -> None:
        """Removes what a stopped server leaves: its temporary folder, its tokens and its state; the logs stay."""
        shutil.rmtree(temporary, ignore_errors=True)
        self.key_file.unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)


def find_process(state: ServerState) -> psutil.Process | None:
    """Returns the frontend's process, or None when it has ended; never another process that got its pid."""
    return find_created(state.pid, created_s=state.created_s, started=state.started)


def find_created(pid: int, *, created_s: float, started: str | None) -> psutil.Process | None:
    """Returns the process of this number that was created then; None when it has ended.

    Args:
        pid: its number.
        created_s: when it was created, in seconds since the epoch: as far off, later, as the clock has been set since.
        started: what `read_start` said of it, which counts alone where it is there.
    """
    try:
        process = psutil.Process(pid)
        if started is not None:
            is_same = read_start(pid) == started
        else:
            is_same = abs(process.create_time() - created_s) <= CREATE_TIME_TOLERANCE_S
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def read_start(pid: int) -> str | None:
    """Returns which boot and how many ticks after it a process was started; None where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{BOOT_FILE.read_text(encoding='ascii').strip()} {stat.rpartition(')')[2].split()[START_FIELD]}"
    except (OSError, LookupError):  # not Linux; or it has ended
        return None
