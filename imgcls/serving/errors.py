"""Errors of running TorchServe.

ServingError
├── JavaError            no usable Java
├── ConfigError          config.properties cannot be read, or asks for something that cannot be served
├── PreflightError       a check found what would make TorchServe fail later
├── AlreadyRunningError  the state folder's server is still alive
├── NotRunningError      there is no server, or its process is gone
├── NotReadyError        not READY and right within the timeout
│   ├── WorkerFailedError    a worker died while loading; `details` holds its own traceback
│   └── OvertakenError       somebody else has asked for another number of workers meanwhile
└── ManagementError      the management API refused, or did not answer
    ├── NotRegisteredError      there is no such model or version
    └── AlreadyRegisteredError  the version is there already
"""

from imgcls.errors import ServingError


class JavaError(ServingError):
    """There is no usable Java; `problem` says why, `fix` what to do."""

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem = problem
        self.fix = fix


class ConfigError(ServingError):
    """config.properties cannot be read, or asks for something that cannot be served."""


class PreflightError(ServingError):
    """A check found what would make TorchServe fail later."""


class AlreadyRunningError(ServingError):
    """The state folder's server is still alive."""


class NotRunningError(ServingError):
    """There is no server in the state folder, or its process is gone."""


class NotReadyError(ServingError):
    """The model was not READY, or its golden answers not right, within the timeout."""


class WorkerFailedError(NotReadyError):
    """A worker died while loading; `details` is what it wrote last, its traceback if there was one."""

    def __init__(self, message: str, *, details: str) -> None:
        super().__init__(message)
        self.details = details


class OvertakenError(NotReadyError):
    """Somebody else has asked for another number of workers while this one was waited for."""


class ManagementError(ServingError):
    """The management API refused a request, or did not answer it."""


class NotRegisteredError(ManagementError):
    """There is no such model or version."""


class AlreadyRegisteredError(ManagementError):
    """The version is there already."""
