"""gateway.yaml: what the gateway listens on, whom it lets in, its limits, and the servers behind it.

Every key has a default that holds; the file may be missing. Unknown keys are errors.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imgcls.errors import UsageError
from imgcls.serving.ports import LOOPBACK
from imgcls.yaml_once import load_yaml
from model.written import Written

DEFAULT_FILE = Path("gateway.yaml")
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0.001, le=86_400)]  # less would be written as 0, which is none to Envoy
# Where Envoy cannot hold one bucket, it takes no routes at all, and no weight can be changed any more.
SLOWEST_RATE, FASTEST_RATE = 1e-6, 1e9
Rate = Annotated[float, Field(ge=SLOWEST_RATE, le=FASTEST_RATE)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]


class _Section(Written):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(_Section):
    """The certificate chain and the private key of the public port, PEM files."""

    certificate: Path
    key: Path


class Listen(_Section):
    """The one public address."""

    host: str = LOOPBACK
    port: Port = 8000  # 0: a free one
    tls: Tls | None = None


class Jwt(_Section):
    """JSON Web Tokens that are taken instead of an API key."""

    issuer: str
    jwks: Path  # the public keys, a JSON Web Key Set
    audiences: tuple[str, ...] = ()
    requests_per_s: Rate | None = None  # of each subject


class Access(_Section):
    """Who may ask: everyone, unless keys or jwt are named."""

    keys: Path | None = None  # written by `imgcls gateway keys`
    jwt: Jwt | None = None
    anonymous: bool | None = None  # None: only on the loopback, and only where neither keys nor jwt are named

    @property
    def is_open(self) -> bool:
        """Whether a request without a key is let in."""
        return self.anonymous if self.anonymous is not None else self.keys is None and self.jwt is None


class Limits(_Section):
    """What a client may ask for, and when it is turned away at once."""

    max_body_bytes: Annotated[int, Field(gt=0, le=1 << 30)] = 10_485_760  # as max_request_size of config.properties
    header_timeout_s: Seconds = 10.0  # for a request's headers to come in
    body_timeout_s: Seconds = 30.0  # for the whole request to come in
    request_timeout_s: Seconds = 60.0  # for the answer; a client may ask for less with X-Timeout-Ms
    idle_timeout_s: Seconds = 300.0  # of a connection
    # Of one version on one server, waiting ones included: more get 503 at once. TorchServe's queue holds 100.
    max_in_flight: Annotated[int, Field(gt=0, le=10_000)] = 100
    max_connections: Annotated[int, Field(gt=0, le=1_000_000)] = 10_000
    requests_per_s: Rate | None = None  # of all clients together; None: no limit
    # Of each client that has no rate of its own; all without a key are one client. None: no limit.
    client_requests_per_s: Rate | None = None


class Readiness(_Section):
    """When the gateway says that it is ready."""

    golden_every_s: Seconds = 30.0
    golden_max_age_s: Seconds = 120.0  # an older success does not count
    poll_s: Seconds = 1.0


class Scaling(_Section):
    """How workers follow the load, where `imgcls scale --auto` has a version do so.

    All are of the requests in flight for each that the workers can compute at a time.
    """

    high: Annotated[float, Field(gt=0, le=100)] = 1.5  # more: workers come
    target: Annotated[float, Field(gt=0, le=100)] = 0.8  # for how many that come
    low: Annotated[float, Field(ge=0, le=1)] = 0.5  # a worker goes when the others would have less
    up_after_s: Seconds = 10.0  # for so long, and so long after the last change
    down_after_s: Seconds = 120.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}; expected less than high, {self.high:g}")
        return self


class Server(_Section):
    """One TorchServe behind the gateway, run by the same supervisor."""

    name: Name
    gpus: tuple[int, ...] | None = None  # which it may see; None: all


class Settings(_Section):
    """The whole file."""

    listen: Listen = Listen()
    access: Access = Access()
    limits: Limits = Limits()
    readiness: Readiness = Readiness()
    scaling: Scaling = Scaling()
    servers: Annotated[tuple[Server, ...], Field(min_length=1)] = (Server(name="main"),)
    drain_timeout_s: Seconds = 30.0  # at SIGTERM: for what is in flight
    drain_notice_s: Annotated[float, Field(ge=0, le=600)] = 0.0  # not ready, but still answering: for load balancers

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [server.name for server in self.servers]
        if len(set(names)) != len(names):
            raise ValueError(f"servers: names are {', '.join(names)}; expected each once")
        is_public = self.listen.host not in (LOOPBACK, "::1", "localhost")
        if is_public and self.access.is_open and self.access.anonymous is None:
            raise ValueError(
                f"listen.host is {self.listen.host}, open to a network, and nobody needs a key; name access.keys or "
                "access.jwt, or set access.anonymous: true"
            )
        return self


def read_settings(path: Path | None) -> Settings:
    """Reads a settings file; None: gateway.yaml where there is one, else the defaults.

    Paths in it are meant from its folder.

    Raises:
        UsageError: it cannot be read; names the key, what it got and what was expected.
    """
    if path is None:
        if not DEFAULT_FILE.is_file():
            return Settings()
        path = DEFAULT_FILE
    try:
        fields = load_yaml(path.read_bytes())
    except (OSError, yaml.YAMLError) as err:
        raise UsageError(
            f"{path}: cannot be read: {' '.join(str(err).split())}; name another with --gateway-config"
        ) from err
    try:
        settings = Settings.model_validate({} if fields is None else fields)
    except ValidationError as err:
        raise UsageError(f"{path}: {describe_invalid(err)}") from err
    return _resolve(settings, folder=path.absolute().parent)


def describe_invalid(error: ValidationError) -> str:
    """Returns the first of a validation's errors on one line: key, what is wrong, what it got."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(str(first['loc'][-1]))}; docs/operations.md lists those that there are"
    if first["type"] == "model_type":
        return f"{where or 'it'} is {first['input']!r}; expected keys with values, such as listen: {{port: 8000}}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where} is {first['input']!r}; {message}" if where else message


def _nearest(key: str) -> str:
    known = [name for section in _Section.__subclasses__() for name in section.model_fields]
    nearest = difflib.get_close_matches(key.replace("-", "_").lower(), known, n=1)
    return f" (meant {nearest[0]}?)" if nearest else ""


def _resolve(settings: Settings, *, folder: Path) -> Settings:
    """Makes each path absolute, and refuses one that is no file."""

    def resolve(value: Any, key: str) -> Any:
        if isinstance(value, Path):
            path = folder / value
            # The key file may come later: `imgcls gateway keys create` makes it.
            if key != "access.keys" and not path.is_file():
                raise UsageError(f"{key} is {value}; expected a file, and there is none at {path}")
            return path
        if isinstance(value, BaseModel):
            changed = {
                name: resolve(getattr(value, name), f"{key}.{name}".lstrip(".")) for name in type(value).model_fields
            }
            return value.model_copy(update=changed)
        return value

    resolved: Settings = resolve(settings, "")
    return resolved
