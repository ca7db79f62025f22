"""The file of API keys: names, hashes, expiry, rates. A key itself is shown once, when it is made, and kept nowhere.

`imgcls gateway keys` changes the file; the supervisor watches it and puts it into the routes.
"""

import fcntl
import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from imgcls.errors import UsageError
from imgcls.files import write_atomic
from imgcls.gateway.settings import SLOWEST_RATE, describe_invalid
from model.written import Written

PREFIX = "imk_"  # lets scanners of leaked secrets, and the gateway, tell a key from a token
SECRET_BYTES = 32
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML has it
FILE_MODE = 0o600
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
MOST_DAYS = 36_500
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")]


class ApiKey(Written):
    """One key, without the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # No colon: `jwt:SUBJECT` is the name of a token's client.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    requests_per_s: Annotated[float, Field(ge=SLOWEST_RATE, le=1_000_000)] | None = None
    burst: Annotated[int, Field(gt=0, le=10_000_000)] | None = None  # None: what the rate gives in a second
    models: tuple[ModelName, ...] | None = None  # None: all

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "anonymous":
            raise ValueError("name is 'anonymous'; expected another: it is that of requests without a key")
        if self.burst is not None and self.requests_per_s is None:
            raise ValueError(f"burst is {self.burst} without a rate; give requests_per_s too")
        if self.models == ():
            raise ValueError("models is empty; name at least one, or leave the key out for all")
        return self

    def status(self, now: datetime) -> str:
        """Returns `active`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class KeyFile(BaseModel):
    """All keys; names and hashes are there once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in self.keys]
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{field} {twice} is there twice; expected each once")
        return self


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Reads the keys; none where there is no file.

    Raises:
        UsageError: the file cannot be read, or is not what `imgcls gateway keys` writes.
    """
    try:
        fields = yaml.load(path.read_bytes(), Loader=LOADER)
    except FileNotFoundError:
        return ()
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as err:  # ValueError: a date that is none
        raise UsageError(f"{path}: cannot be read: {' '.join(str(err).split())}; restore a copy") from err
    try:
        return KeyFile.model_validate({} if fields is None else fields).keys
    except ValidationError as err:
        raise UsageError(f"{path}: {describe_invalid(err)}") from err


def create_key(
    path: Path,
    name: str,
    *,
    expires: datetime | None = None,
    requests_per_s: float | None = None,
    burst: int | None = None,
    models: tuple[str, ...] | None = None,
) -> tuple[str, ApiKey]:
    """Makes a key and adds its hash to the file.

    Returns:
        the key itself, which is written nowhere, and its row.

    Raises:
        UsageError: there is a key of this name, whatever its state, or a value is out of range; nothing is written.
    """
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    try:
        key = ApiKey(
            name=name,
            sha256=hash_key(secret),
            created=_now(),
            expires=expires,
            requests_per_s=requests_per_s,
            burst=burst,
            models=models,
        )
    except ValidationError as err:
        raise UsageError(f"key {name!r}: {describe_invalid(err)}") from err
    with _lock(path):
        keys = read_keys(path)
        if any(other.name == name for other in keys):
            raise UsageError(f"{path} has a key {name!r} already; a new one needs a name of its own, such as {name}-2")
        _write(path, (*keys, key))
    return secret, key


def revoke_key(path: Path, name: str) -> ApiKey:
    """Marks a key as revoked; doing so again changes nothing.

    Raises:
        UsageError: there is none of this name.
    """
    with _lock(path):
        keys = read_keys(path)
        key = next((key for key in keys if key.name == name), None)
        if key is None:
            known = ", ".join(key.name for key in keys) or "none"
            raise UsageError(f"{path} has no key {name!r}; there is {known}")
        if key.revoked is not None:
            return key
        revoked = key.model_copy(update={"revoked": _now()})
        _write(path, tuple(revoked if other is key else other for other in keys))
        return revoked


def hash_key(key: str) -> str:
    """Returns what stands in the file for a key. It has 256 random bits, so a plain hash cannot be guessed back."""
    return hashlib.sha256(key.encode()).hexdigest()


def expiry_after(text: str) -> datetime:
    """Returns the moment that is `90d`, `12h` or `4w` from now.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"([0-9]{1,6})([hdw])", text)
    span = int(match[1]) * UNITS[match[2]] if match else timedelta(0)
    if not timedelta(0) < span <= timedelta(days=MOST_DAYS):
        raise UsageError(f"--expires is {text!r}; expected a number with h, d or w, such as 90d, up to {MOST_DAYS}d")
    return _now() + span


def is_open_to_others(path: Path) -> bool:
    """Whether more than its owner may read or change the file."""
    return path.is_file() and bool(path.stat().st_mode & 0o077)


def _write(path: Path, keys: tuple[ApiKey, ...]) -> None:
    fields = KeyFile(keys=keys).model_dump(mode="json", exclude_none=True)
    write_atomic(path, yaml.safe_dump(fields, sort_keys=False), mode=FILE_MODE)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one command at a time change the file."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
