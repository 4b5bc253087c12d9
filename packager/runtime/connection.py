"""The connection to an Ollama daemon: its address, requests and errors."""

from __future__ import annotations

import ipaddress
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from packager.errors import DaemonError, RegistrationError, UsageError

if TYPE_CHECKING:
    import httpx

_SET_HOST = "Set OLLAMA_HOST to HOST:PORT, for example 127.0.0.1:11434."
_CONNECT_TIMEOUT_S = 10.0
# Between two bytes of an answer. The longest pause is to load a large model from a slow disk, and
# Ollama itself gives up on a load that makes no progress for five minutes.
_ANSWER_TIMEOUT_S = 600.0


class Connection:
    """Requests to one daemon; every failure becomes one of ftpack's errors.

    Attributes:
        client: the `ollama` client (it has no type hints).
        http: the client's HTTP connection, for requests that the client has no method for.
        host: the daemon's address, `http://127.0.0.1:11434`.
        is_local: whether the daemon runs on this machine.
    """

    def __init__(self, host: str | None) -> None:
        self.client = _open_client(host, trust_env=True)
        self.is_local = _is_local(self.client._client.base_url.host)
        if self.is_local:
            # Ollama's own client never uses a proxy to reach this machine. httpx would, if
            # HTTP_PROXY is set and NO_PROXY is not.
            self.client.close()
            self.client = _open_client(host, trust_env=False)
        self.http: httpx.Client = self.client._client
        self.host = str(self.http.base_url).rstrip("/")

    def post(self, path: str, body: Mapping[str, object], doing: str) -> dict[str, Any]:
        """The JSON object with which the daemon answers a request."""
        with self.errors_while(doing):
            response = self.http.post(path, json=body)
            self.refuse_failure(response)
            answer = response.json()
        if not isinstance(answer, dict):
            raise self.not_ollama(doing)
        return answer

    @contextmanager
    def errors_while(self, doing: str) -> Iterator[None]:
        """Raise errors of the block as a `DaemonError` or a `RegistrationError`.

        Args:
            doing: what the block does, worded to follow "while".
        """
        import httpx
        import ollama

        try:
            yield
        except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise DaemonError(
                f"No Ollama daemon answers at {self.host} ({error.__cause__ or error}).",
                next_step="Start Ollama (`ollama serve`, or its application), or set OLLAMA_HOST "
                "to the address of a running daemon.",
            ) from error
        except httpx.RequestError as error:
            raise self.stopped_answering(doing, f"{type(error).__name__}: {error}") from error
        except ollama.ResponseError as error:
            raise RegistrationError(
                f"The Ollama daemon at {self.host} failed while {doing}: {error.error}",
                next_step="Look for the reason in the daemon's log and try again; "
                "a newer Ollama supports more architectures.",
            ) from error
        except json.JSONDecodeError as error:
            raise self.not_ollama(doing) from error

    def refuse_failure(self, response: httpx.Response) -> None:
        """Raise the client's own error if the daemon answered with a failure."""
        import ollama

        if response.is_error:
            raise ollama.ResponseError(_failure_text(response), response.status_code)

    def stopped_answering(self, doing: str, detail: str) -> DaemonError:
        """The error for a daemon that stopped answering during the work."""
        return DaemonError(
            f"The Ollama daemon at {self.host} stopped answering while {doing} ({detail}).",
            next_step="Start it again (`ollama serve`) and look at its log; "
            "files that it already has are not sent again.",
        )

    def not_ollama(self, doing: str) -> DaemonError:
        """The error for a server that answers, but is not Ollama."""
        return DaemonError(
            f"The server at {self.host} does not speak Ollama's API (noticed while {doing}).",
            next_step="Set OLLAMA_HOST to the address of an Ollama daemon.",
        )


def _open_client(host: str | None, *, trust_env: bool) -> Any:
    import httpx
    import ollama

    timeout = httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    try:
        client: Any = ollama.Client(host, timeout=timeout, trust_env=trust_env)
    except (ValueError, httpx.InvalidURL) as error:
        raise UsageError(
            f"The daemon's address is not valid: {error}.",
            next_step=_SET_HOST,
        ) from error
    url = client._client.base_url
    if url.scheme not in ("http", "https"):
        raise UsageError(
            f"The daemon's address begins with {url.scheme}://; only http and https are possible.",
            next_step=_SET_HOST,
        )
    if url.host in ("0.0.0.0", "::"):
        # The same variable makes a daemon listen on every address; not every system lets a client
        # connect to this one.
        loopback = "127.0.0.1" if url.host == "0.0.0.0" else "::1"
        client._client.base_url = url.copy_with(host=loopback)
    return client


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _failure_text(response: httpx.Response) -> str:
    """The daemon's own message, or else the HTTP status."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return str(answer["error"])
    return f"HTTP status {response.status_code} for {urllib.parse.unquote(response.url.path)}"
