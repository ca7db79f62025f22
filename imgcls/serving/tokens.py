"""TorchServe's tokens: one for inference, one for management, one to renew these.

TorchServe writes them to key_file.json when it starts, and again when one is renewed. A renewed token ends the old one
at once, for every client. A wrong or an expired token is answered with 400, not 401.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from imgcls.errors import ServingError
from imgcls.serving.errors import ManagementError

RENEW_TIMEOUT_S = 10


@dataclass(frozen=True)
class Token:
    """A key, and when it expires; None for one that does not."""

    key: str
    expires: datetime | None = None

    @property
    def is_expired(self) -> bool:
        """Whether the server refuses it by now."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


@dataclass(frozen=True)
class Tokens:
    """The three of one server."""

    inference: Token
    management: Token
    api: Token


def read_tokens(path: Path) -> Tokens:
    """Reads key_file.json.

    Raises:
        ServingError: it is missing or broken.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Tokens(*(_parse(fields[kind]) for kind in ("inference", "management", "API")))
    except FileNotFoundError as err:
        raise ServingError(
            f"{path}: there are no tokens yet; TorchServe writes them as it starts. Where it has run for long, stop it "
            "and start it again"
        ) from err
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise ServingError(f"{path}: the tokens cannot be read ({err!r}); stop the server and start it again") from err


def renew_token(path: Path, *, kind: str, management_url: str) -> Tokens:
    """Makes the server replace its inference or management token; the old one is refused from now on.

    Args:
        path: of key_file.json, which TorchServe rewrites before it answers.
        kind: "inference" or "management".
        management_url: of the management API.

    Raises:
        ManagementError: the server refused or did not answer.
        ServingError: the key file is missing or broken.
    """
    headers = {"Authorization": f"Bearer {read_tokens(path).api.key}"}
    try:
        with requests.Session() as session:
            session.trust_env = False  # no proxy, and no .netrc that would replace the header
            response = session.get(
                f"{management_url}/token", params={"type": kind}, headers=headers, timeout=RENEW_TIMEOUT_S
            )
    except requests.RequestException as err:
        raise ManagementError(
            f"{management_url}/token: no answer ({err}); is the server running? imgcls status tells"
        ) from err
    if response.status_code != requests.codes.ok:
        raise ManagementError(f"{management_url}/token: refused with {response.status_code}: {response.text.strip()}")
    return read_tokens(path)


def current_tokens(path: Path, *, management_url: str) -> Tokens:
    """Reads the tokens, and renews those that have expired."""
    tokens = read_tokens(path)
    for kind, token in (("management", tokens.management), ("inference", tokens.inference)):
        if token.is_expired:
            tokens = renew_token(path, kind=kind, management_url=management_url)
    return tokens


def _parse(fields: Any) -> Token:
    key, expires = fields["key"], fields.get("expiration time")
    if not (isinstance(key, str) and key.isascii() and key.isprintable()):  # or it could be no header
        raise ValueError("a key is no text, or holds odd characters")
    return Token(key=key, expires=_parse_time(expires) if expires else None)


def _parse_time(text: str) -> datetime:
    # Java writes nanoseconds, and years of five digits where the lifetime is set very high.
    try:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)
