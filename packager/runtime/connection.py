"""The connection to an Ollama daemon: its address, its requests, and what goes wrong with them."""

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

_CONNECT_TIMEOUT_S = 10.0
# Between two bytes of an answer: loading a large model from a slow disk is the longest silence,
# and Ollama itself gives up on a load that stands still for five minutes.
_ANSWER_TIMEOUT_S = 600.0


class Connection:
    """Requests to one daemon, with every failure turned into an error of ftpack's.

    Attributes:
        client: the `ollama` client (it has no type hints).
        http: the client's own HTTP connection, for what the client has no method for.
        host: the daemon's address, `http://127.0.0.1:11434`.
        is_local: whether the daemon runs on this machine.
    """

    def __init__(self, host: str | None) -> None:
        self.client = _open_client(host, trust_env=True)
        self.is_local = _is_local(self.client._client.base_url.host)
        if self.is_local:
            # Ollama's own client never asks a proxy for this machine; httpx would, where
            # HTTP_PROXY is set and NO_PROXY is not.
            self.client.close()
            self.client = _open_client(host, trust_env=False)
        self.http: httpx.Client = self.client._client
        self.host = str(self.http.base_url).rstrip("/")

    def post(self, path: str, body: Mapping[str, object], doing: str) -> dict[str, Any]:
        """The JSON object that the daemon answers to a request."""
        with self.errors_while(doing):
            response = self.http.post(path, json=body)
            self.refuse_failure(response)
            answer = response.json()
        if not isinstance(answer, dict):
            raise self.not_ollama(doing)
        return answer

    @contextmanager
    def errors_while(self, doing: str) -> Iterator[None]:
        """Give errors from the block as a `DaemonError` or a `RegistrationError`.

        Args:
            doing: what was being done, as it stands after "while".
        """
        import httpx
        import ollama

        try:
            yield
        except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise DaemonError(
                f"No Ollama daemon answers at {self.host} ({error.__cause__ or error}).",
                next_step="Start Ollama (`ollama serve`, or its application), or set OLLAMA_HOST "
                "to the address of the daemon that you mean.",
            ) from error
        except httpx.RequestError as error:
            raise self.went_away(doing, f"{type(error).__name__}: {error}") from error
        except ollama.ResponseError as error:
            raise RegistrationError(
                f"The Ollama daemon at {self.host} failed while {doing}: {error.error}",
                next_step="Look into the daemon's log for the reason, and try again; "
                "a newer Ollama knows more architectures.",
            ) from error
        except json.JSONDecodeError as error:
            raise self.not_ollama(doing) from error

    def refuse_failure(self, response: httpx.Response) -> None:
        """Raise the client's own error where the daemon answered with a failure."""
        import ollama

        if response.is_error:
            raise ollama.ResponseError(_failure_text(response), response.status_code)

    def went_away(self, doing: str, detail: str) -> DaemonError:
        """The error for a daemon that stopped answering midway."""
        return DaemonError(
            f"The Ollama daemon at {self.host} went away while {doing} ({detail}).",
            next_step="Start it again (`ollama serve`) and look at its log; "
            "a file that it has already is not sent again.",
        )

    def not_ollama(self, doing: str) -> DaemonError:
        """The error for something that answers, but not as Ollama does."""
        return DaemonError(
            f"What answers at {self.host} does not speak Ollama's API (seen while {doing}).",
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
            f"The daemon's address cannot be read: {error}.",
            next_step="Set OLLAMA_HOST to HOST:PORT, for example 127.0.0.1:11434.",
        ) from error
    url = client._client.base_url
    if url.scheme not in ("http", "https"):
        raise UsageError(
            f"The daemon's address begins with {url.scheme}://; it must be http or https.",
            next_step="Set OLLAMA_HOST to HOST:PORT, for example 127.0.0.1:11434.",
        )
    if url.host in ("0.0.0.0", "::"):
        # A daemon that listens everywhere is told so by the same variable; not every system lets
        # a client connect to that address.
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
    """The daemon's own words, or the status where there are none."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return str(answer["error"])
    return f"HTTP status {response.status_code} for {urllib.parse.unquote(response.url.path)}"
