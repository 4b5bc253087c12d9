"""A local or remote Ollama daemon: hand it a GGUF, and prove what it made of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from packager.errors import DaemonError, PromptRefusedError, RegistrationError
from packager.files import sha256_file
from packager.progress import Progress, Silent, Task
from packager.runtime.api_message import api_message, refusal_reason
from packager.runtime.connection import Connection
from packager.runtime.model_name import qualified_name, split_tag, validate_name, with_suffix
from packager.runtime.show import ShownModel, read_shown, require_as_sent
from packager.scalar import Scalar

__all__ = [
    "CREATE_COPIES",
    "Daemon",
    "Registration",
    "ShownModel",
    "split_tag",
    "validate_name",
    "with_suffix",
]

# How many times the daemon's disk holds a GGUF while it is created: the upload, what llama-quantize
# makes of it, and a copy of that under its digest (server/create.go). One stays where its bytes are
# as llama-quantize itself would have written them; else two, until the daemon is started again an
# hour or more later.
CREATE_COPIES = 3
QUESTION = "Hello! Who are you?"
_ANSWER_TOKENS = 48
_VERSION_TIMEOUT_S = 10.0
_UPLOAD_BYTES = 1 << 20
# Where the Linux installer's system service keeps its models.
_SERVICE_MODELS = Path("/usr/share/ollama/.ollama/models")


@dataclass(frozen=True)
class Registration:
    """A model that is registered as it was built, and that answers.

    Attributes:
        name: the model's name.
        digest: the digest of its manifest, whose beginning `ollama list` shows as the id.
        capabilities: what the daemon takes the model to be capable of.
        template_in_force: `TEMPLATE` (the Modelfile's) or `native` (the GGUF's own).
        answer: a short answer that it gave.
        done_reason: `stop` where the answer ended by itself, `length` where it was cut.
    """

    name: str
    digest: str
    capabilities: tuple[str, ...]
    template_in_force: str
    answer: str
    done_reason: str


class Daemon:
    """An Ollama daemon, reached through its API alone.

    Every method raises `DaemonError` where the daemon cannot be reached or goes away, and
    `RegistrationError` where it answers with a refusal.

    Args:
        host: the daemon's address; without it OLLAMA_HOST, then 127.0.0.1:11434.
    """

    def __init__(self, host: str | None = None) -> None:
        self._host = host

    @cached_property
    def _connection(self) -> Connection:
        return Connection(self._host)

    @property
    def host(self) -> str:
        """The address that is used, as a URL."""
        return self._connection.host

    @property
    def is_local(self) -> bool:
        """Whether the daemon runs on this machine (and on its disk)."""
        return self._connection.is_local

    def version(self) -> str:
        """The daemon's version, which also tells that it is there."""
        doing = "asking for its version"
        with self._connection.errors_while(doing):
            response = self._connection.http.get("/api/version", timeout=_VERSION_TIMEOUT_S)
            answer = response.json() if response.is_success else None
        if not isinstance(answer, dict) or not isinstance(answer.get("version"), str):
            raise self._connection.not_ollama(doing)
        return str(answer["version"])

    def is_reachable(self) -> bool:
        """Whether an Ollama daemon answers at the address."""
        try:
            self.version()
        except DaemonError:
            return False
        return True

    def models_folder(self) -> Path | None:
        """Where a daemon on this machine most likely keeps its models; `None` for another's.

        The daemon does not tell: this is OLLAMA_MODELS, else the user's folder, else that of the
        Linux system service where only that one is there.
        """
        if not self.is_local:
            return None
        if chosen := os.environ.get("OLLAMA_MODELS"):
            return Path(chosen)
        own = Path.home() / ".ollama" / "models"
        if sys.platform == "linux" and not own.is_dir() and _SERVICE_MODELS.is_dir():
            return _SERVICE_MODELS
        return own

    def has_blob(self, digest: str) -> bool:
        """Whether the daemon has the file with this digest (`sha256:...`) already."""
        with self._connection.errors_while("looking for a file"):
            response = self._connection.http.head(f"/api/blobs/{digest}")
            if response.status_code == 404:
                return False
            self._connection.refuse_failure(response)
            return True

    def upload(
        self, path: Path, progress: Progress | None = None, *, sha256: str | None = None
    ) -> str:
        """Give the daemon a file, unless it has it; the digest under which it has it.

        The daemon keeps a file only if it arrives whole: it computes the digest itself.

        Args:
            path: the file.
            progress: told of the bytes sent.
            sha256: the file's digest in hexadecimal, where the caller knows it.
        """
        progress = progress or Silent()
        digest = f"sha256:{sha256 or sha256_file(path)}"
        if self.has_blob(digest):
            progress.note(f"{path.name}: {self.host} has it already")
            return digest
        size_bytes = path.stat().st_size
        with (
            path.open("rb") as file,
            progress.task(f"Uploading {path.name}", size_bytes) as task,
            self._connection.errors_while(f"receiving {path.name}"),
        ):
            response = self._connection.http.post(
                f"/api/blobs/{digest}",
                content=_blocks(file, task),
                headers={
                    "Content-Length": str(size_bytes),
                    "Content-Type": "application/octet-stream",
                },
            )
            self._connection.refuse_failure(response)
        return digest

    def create(
        self,
        name: str,
        files: Mapping[str, str],
        *,
        template: str | None,
        system: str | None,
        stops: Sequence[str],
        parameters: Mapping[str, Scalar],
    ) -> None:
        """Register uploaded GGUFs; the name changes hands only when all of it is in place.

        The daemon rewrites the file first; `CREATE_COPIES` tells what that takes on its disk.

        Args:
            name: the model's name; a model of that name is replaced.
            files: the digests of the uploaded GGUF, and of the `mmproj` of a model that sees or
                hears (`sha256:...`), by their names: those are for the daemon's messages.
            template: the Go template, or `None` for the GGUF's own.
            system: the default system text.
            stops: the texts that end an answer.
            parameters: the other parameters, by Ollama's names.
        """
        doing = f"creating {name}"
        with self._connection.errors_while(doing):
            updates = self._connection.client.create(
                model=validate_name(name),
                files=dict(files),
                template=template,
                system=system or None,
                # Always sent, though empty: without it `create` adds the stops of the known
                # template that the GGUF's resembles most.
                parameters={**parameters, "stop": list(stops)},
                stream=True,
            )
            statuses = [update.status for update in updates]
        if statuses[-1:] != ["success"]:
            raise self._connection.went_away(doing, f"its last words were {statuses[-1:]}")

    def has_model(self, name: str) -> bool:
        """Whether a model of this name is registered."""
        return self._listed_digest(name) is not None

    def show(self, name: str) -> ShownModel:
        """What the daemon tells about a registered model."""
        return read_shown(
            self._connection.post("/api/show", {"model": name}, f"telling about {name}")
        )

    def render(
        self,
        name: str,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] = (),
        thinking: bool | None = None,
    ) -> str | None:
        """The prompt that the daemon makes of a conversation; `None` if it is too old to tell.

        Args:
            name: the model.
            messages: the turns, as transformers' chat templates know them.
            tools: JSON schemas of functions.
            thinking: whether to think; `None` leaves it to the daemon.

        Raises:
            PromptRefusedError: with the daemon's reason, if it does not take the conversation.
        """
        body: dict[str, object] = {
            "model": name,
            "messages": [api_message(message) for message in messages],
            "stream": False,
            # Else the oldest turns are left out of what does not fit the context.
            "truncate": False,
            "_debug_render_only": True,
        }
        if tools:
            body["tools"] = list(tools)
        if thinking is not None:
            body["think"] = thinking
        doing = f"rendering a prompt for {name}"
        with self._connection.errors_while(doing):
            response = self._connection.http.post("/api/chat", json=body)
            if response.status_code in (400, 500):
                raise PromptRefusedError(refusal_reason(response.text))
            self._connection.refuse_failure(response)
            details = response.json().get("_debug_info")
        return str(details["rendered_template"]) if isinstance(details, dict) else None

    def verify(
        self,
        name: str,
        expected_template: str | None,
        stops: Sequence[str],
        *,
        gguf_chat_template: str | None = None,
        parameters: Mapping[str, Scalar] | None = None,
        has_projector: bool = False,
    ) -> Registration:
        """Read a registered model back, and have it answer once.

        Args:
            name: the model.
            expected_template: the Go template sent, or `None` where the GGUF's own is to be used.
            stops: the stop texts sent.
            gguf_chat_template: the GGUF's Jinja, to be told exactly; `None` takes any Jinja.
            parameters: the other parameters sent; `None` compares none.
            has_projector: whether an `mmproj` was sent.

        Raises:
            RegistrationError: if what is in force is not what was sent, or no answer comes.
        """
        shown = self.show(name)
        require_as_sent(
            name,
            shown,
            ollama_template=expected_template,
            gguf_chat_template=gguf_chat_template,
            stops=stops,
            parameters=parameters,
        )
        if has_projector and not {"vision", "audio"} & set(shown.capabilities):
            raise RegistrationError(
                f"{name} was registered with an mmproj, and {self.host} tells neither `vision` nor "
                f"`audio` of it, but {', '.join(shown.capabilities)}.",
                next_step="Update Ollama, or package the text model alone with --text-only.",
            )
        answer, done_reason = self._answer(name, QUESTION)
        return Registration(
            name=name,
            digest=self._digest(name),
            capabilities=shown.capabilities,
            template_in_force=shown.template_in_force,
            answer=answer,
            done_reason=done_reason,
        )

    def delete(self, name: str) -> None:
        """Take a model off the daemon; what other models share with it stays."""
        with self._connection.errors_while(f"deleting {name}"):
            self._connection.client.delete(name)

    def rename(self, source: str, destination: str) -> None:
        """Give a model another name; what had that name before goes when the new one has it."""
        replaced = with_suffix(destination, "-replaced")
        had_one = self.has_model(destination)
        if had_one:
            self.copy(destination, replaced)
        self.copy(source, destination)
        self.delete(source)
        if had_one:
            # Deleted, not only overwritten: its files go with it.
            self.delete(replaced)

    def copy(self, source: str, destination: str) -> None:
        """Give a registered model a second name, which shares its files."""
        with self._connection.errors_while(f"copying {source} to {destination}"):
            self._connection.client.copy(source, validate_name(destination))

    def _answer(self, name: str, question: str) -> tuple[str, str]:
        """A short answer that is the same each time, and why it ended."""
        with self._connection.errors_while(f"letting {name} answer"):
            reply = self._connection.client.chat(
                model=name,
                messages=[{"role": "user", "content": question}],
                options={"num_predict": _ANSWER_TOKENS, "temperature": 0, "seed": 1},
            )
        # A model that thinks may still be at it when the answer is cut.
        return reply.message.content or reply.message.thinking or "", reply.done_reason or ""

    def _digest(self, name: str) -> str:
        digest = self._listed_digest(name)
        if digest is None:
            raise RegistrationError(
                f"{name} answers, but {self.host} does not list it.",
                next_step="Look into the daemon's log, and register the model again.",
            )
        return digest

    def _listed_digest(self, name: str) -> str | None:
        """The digest of a model's manifest; `None` where the daemon does not list it."""
        with self._connection.errors_while(f"looking for {name}"):
            listed = self._connection.client.list().models
        wanted = qualified_name(name)
        for model in listed:
            if model.model and qualified_name(model.model) == wanted:
                return str(model.digest)
        return None


def _blocks(file: BinaryIO, task: Task) -> Iterator[bytes]:
    while block := file.read(_UPLOAD_BYTES):
        yield block
        task.advance(len(block))
