"""The client: one session with a pool of connections, timeouts, and retries only where nothing was answered."""

import ipaddress
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import ReadTimeoutError

from imgcls.client.answers import Prediction, error_of, parse_prediction
from imgcls.client.errors import ConnectionFailedError, RequestTimeoutError
from imgcls.errors import ClientError

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 60.0
RETRIES = 2
BACKOFF_S = 0.1  # before the first retry; doubled before each further one
POOL_SIZE = 32


class Client:
    """Asks one server for predictions; may be shared between threads.

    Args:
        url: of the inference API, such as "http://127.0.0.1:8080".
        token: TorchServe's inference token; None where the server asks for none.
        model: the model's name.
        version: of the model; by default the server's default version.
        timeout_s: for the whole answer once connected.
        connect_timeout_s: for the connection.
        retries: after a connection that failed or broke. A timeout or an answer is never tried again: the server may be
            at work on it, and an overloaded one would get more load.

    Raises:
        ClientError: the URL or the token cannot be one.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        model: str = "imgcls",
        version: str | None = None,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        retries: int = RETRIES,
    ) -> None:
        self.url = _check_url(url)
        self.retries = retries
        self._path = f"/predictions/{quote(model, safe='')}" + (f"/{quote(version, safe='')}" if version else "")
        self._timeout_s = (connect_timeout_s, timeout_s)
        self._session = requests.Session()
        self._session.auth = _TokenAuth(_check_token(token))
        self._session.trust_env = not _is_loopback(self.url)  # no proxy between us and this very machine
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=POOL_SIZE, max_retries=0))

    def __enter__(self) -> Self:
        """Returns itself; leaving closes its connections."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the connections."""
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def predict(self, data: bytes, top_k: int = 5) -> Prediction:
        """Classifies the bytes of one image file.

        Args:
            data: a whole image file.
            top_k: how many classes to rank, the most probable ones first.

        Raises:
            ClientError: see imgcls.client.errors for the kinds.
        """
        # octet-stream, because TorchServe takes a form or JSON apart before the handler sees it; top_k as a header,
        # because TorchServe drops the query of /predictions
        headers = {"Content-Type": "application/octet-stream", "top_k": str(top_k)}
        response = self._send("POST", self._path, data=data, headers=headers)
        body = _json_of(response)
        if response.status_code != requests.codes.ok:
            raise error_of(response.status_code, body, text=response.text)
        return parse_prediction(body)

    def predict_file(self, path: Path, top_k: int = 5) -> Prediction:
        """Classifies one image file.

        Raises:
            ClientError: the file cannot be read, or see imgcls.client.errors.
        """
        try:
            data = path.read_bytes()
        except OSError as err:
            raise ClientError(f"the file cannot be read: {err.strerror}") from err
        return self.predict(data, top_k=top_k)

    def ping(self) -> str:
        """Returns what TorchServe says of its own health.

        "Healthy" tells only that the frontend answers: it says so with no model and while workers crash.

        Raises:
            ClientError: it is not reached, or the token is refused.
        """
        response = self._send("GET", "/ping")
        body = _json_of(response)
        if response.status_code == requests.codes.ok and isinstance(body, dict):
            return str(body.get("status"))
        raise error_of(response.status_code, body, text=response.text)

    def _send(
        self, method: str, path: str, *, data: bytes | None = None, headers: dict[str, str] | None = None
    ) -> requests.Response:
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(BACKOFF_S * 2 ** (attempt - 1))
            try:
                return self._session.request(
                    method, self.url + path, data=data, headers=headers, timeout=self._timeout_s
                )
            except requests.ConnectionError as err:
                # A timeout in the middle of an answer comes as a ConnectionError too.
                if err.args and isinstance(err.args[0], ReadTimeoutError):
                    raise self._timed_out() from err
                failure = err
            except requests.ReadTimeout as err:
                raise self._timed_out() from err
            except requests.RequestException as err:
                raise ConnectionFailedError(f"{self.url}: the request failed: {err}") from err
        reason = "nobody listens there" if _is_refused(failure) else type(failure).__name__
        raise ConnectionFailedError(
            f"{self.url}: no connection ({reason}); is the server started, and the URL right?"
        ) from failure

    def _timed_out(self) -> RequestTimeoutError:
        return RequestTimeoutError(
            f"{self.url}: no answer within {self._timeout_s[1]:g} s; the server may be overloaded"
        )


class _TokenAuth(AuthBase):
    """Sets the token; as `auth`, it is not replaced by an entry of ~/.netrc, which a plain header would be."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an end, or a port that is none
        is_usable = False
    if not is_usable:
        raise ClientError(f"the URL is {url!r}; expected one such as http://127.0.0.1:8080")
    return url.rstrip("/")


def _check_token(token: str | None) -> str | None:
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ClientError(
            "the token holds a line break or another character that no header can carry; give it as it is"
        )
    return token


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_refused(error: BaseException | None) -> bool:
    """Tells whether somewhere in an error's chain a connection was refused; requests and urllib3 wrap it thrice."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def _json_of(response: requests.Response) -> object:
    try:
        return response.json()
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, lists without end
        return None
