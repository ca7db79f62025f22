"""A thin client of TorchServe's management API: what a model's workers do, and how many there are."""

import reprlib
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import requests
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from imgcls.serving.errors import AlreadyRegisteredError, ManagementError, NotRegisteredError

TIMEOUT_S = 10.0
UNREGISTER_TIMEOUT_S = 130.0  # TorchServe waits up to 120 s for the workers' end
READY = "READY"
SHOWN = 200  # characters of an answer in a message
_KINDS: dict[int, type[ManagementError]] = {404: NotRegisteredError, 409: AlreadyRegisteredError}
_T = TypeVar("_T")


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, protected_namespaces=())


class Worker(_Answer):
    """One worker process."""

    id: str
    status: str  # READY, UNLOADING, or what TorchServe calls one that is still loading or has died
    pid: int  # -1 until it has told it
    gpu: bool
    gpu_usage: str = "N/A"

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.status == READY


class Queue(_Answer):
    """The requests that wait for a worker."""

    pending_requests: int
    remaining_capacity: int


class ModelStatus(_Answer):
    """One version of a model."""

    model_name: str
    model_version: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int = Field(alias="maxBatchDelay")
    device_type: str = "cpu"
    workers: tuple[Worker, ...] = ()
    queue: Queue | None = Field(default=None, alias="jobQueueStatus")

    @property
    def ready_workers(self) -> int:
        """How many workers take requests."""
        return sum(worker.is_ready for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        """Whether the model has all the workers it wants, and each takes requests."""
        return 0 < self.min_workers <= len(self.workers) == self.ready_workers


class _Listed(_Answer):
    model_name: str


class _Models(_Answer):
    models: tuple[_Listed, ...] = ()


_Statuses = TypeAdapter(Annotated[tuple[ModelStatus, ...], Field(min_length=1)])
_Customized = TypeAdapter(Annotated[tuple[dict[str, Any], ...], Field(min_length=1)])
_Listing = TypeAdapter(_Models)


class Management:
    """The management API of one server."""

    def __init__(self, url: str, *, token: str | None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy to the loopback, and no .netrc that would replace the header
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Self:
        """Returns itself; leaving closes its connections."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the connections."""
        self._session.close()

    def describe(self, name: str, *, version: str | None = None) -> ModelStatus:
        """Returns the state of a model's version, the default one unless named.

        Raises:
            ManagementError: there is no such model, the token is refused, or nobody answers.
        """
        return self._describe(f"/models/{name}" + (f"/{version}" if version else ""))[0]

    def describe_all(self, name: str) -> tuple[ModelStatus, ...]:
        """Returns the state of each registered version of a model; raises as `describe` does."""
        return self._describe(f"/models/{name}/all")

    def ask_worker(self, name: str, *, version: str) -> Any:
        """Returns what a worker of a version tells of itself when TorchServe asks its handler to; None if nothing.

        Raises:
            ManagementError: there is no such version, or nobody answers.
        """
        path = f"/models/{name}/{version}"
        answer = self._request("GET", path, params={"customized": "true"})
        return self._parse(_Customized, answer, path=path)[0].get("customizedMetadata")

    def list_models(self) -> list[str]:
        """Returns the names of the registered models.

        Raises:
            ManagementError: the token is refused, or nobody answers.
        """
        return [
            entry.model_name for entry in self._parse(_Listing, self._request("GET", "/models"), path="/models").models
        ]

    def scale(self, name: str, workers: int, *, version: str | None = None) -> None:
        """Asks for a number of workers and returns at once; a worker that is taken away drops its batch in flight.

        Raises:
            ManagementError: refused, or nobody answers.
        """
        path = f"/models/{name}" + (f"/{version}" if version else "")
        self._request("PUT", path, params={"min_worker": workers, "max_worker": workers})

    def register(self, file: str) -> None:
        """Registers an archive of the model store and returns at once; its workers, as many as it wants, are starting.

        Args:
            file: its name in the model store.

        Raises:
            AlreadyRegisteredError: this version of the model is there already.
            ManagementError: the file is not there or broken, registering is switched off, or nobody answers.
        """
        self._request("POST", "/models", params={"url": file, "initial_workers": 1, "synchronous": "false"})

    def unregister(self, name: str, version: str) -> None:
        """Ends a version's workers, whatever they are at, and forgets it; the file in the model store stays.

        Raises:
            ManagementError: it is the default version and others are there, or nobody answers.
        """
        self._request("DELETE", f"/models/{name}/{version}", timeout_s=UNREGISTER_TIMEOUT_S)

    def set_default(self, name: str, version: str) -> None:
        """Makes a version the one that answers where none is named, as over gRPC; it is not looked at.

        Raises:
            ManagementError: there is no such version, or nobody answers.
        """
        self._request("PUT", f"/models/{name}/{version}/set-default")

    def _describe(self, path: str) -> tuple[ModelStatus, ...]:
        return self._parse(_Statuses, self._request("GET", path), path=path)

    def _parse(self, kind: TypeAdapter[_T], answer: Any, *, path: str) -> _T:
        try:
            return kind.validate_python(answer)
        except ValidationError as err:
            first = err.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise ManagementError(
                f"{self.url}{path}: got an answer that is not TorchServe 0.12's ({where}: {first['msg']}, got "
                f"{_shorten(first['input'])}); does something else listen there?"
            ) from err

    def _request(
        self, method: str, path: str, *, params: dict[str, Any] | None = None, timeout_s: float | None = None
    ) -> Any:
        timeout_s = timeout_s or self.timeout_s
        try:
            response = self._session.request(method, self.url + path, params=params, timeout=timeout_s)
        except requests.RequestException as err:
            raise ManagementError(
                f"{self.url}{path}: no answer ({type(err).__name__}); imgcls status tells whether it runs"
            ) from err
        try:
            answer = response.json()
        except (ValueError, RecursionError) as err:  # none, a number of thousands of digits, lists without end
            raise ManagementError(
                f"{self.url}{path}: got {response.status_code} and no JSON; is this TorchServe?"
            ) from err
        if not response.ok:
            message = answer.get("message", answer) if isinstance(answer, dict) else answer
            kind = _KINDS.get(response.status_code, ManagementError)
            raise kind(f"{self.url}{path}: refused with {response.status_code}: {_shorten(message)}")
        return answer


def _shorten(value: Any) -> str:
    """Returns it on one line that a person reads; its repr may be without end."""
    text = " ".join((value if isinstance(value, str) else reprlib.repr(value)).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
