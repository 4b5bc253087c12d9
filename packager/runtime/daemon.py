"""A local or remote Ollama daemon: give it a GGUF, and verify what it registered."""

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
from packager.runtime.model_name import qualified_name, validate_name, with_suffix
from packager.runtime.model_settings import ModelSettings
from packager.runtime.show import ShowResponse, read_show_response, require_as_sent

# How many copies of a GGUF the daemon's disk holds while a model is created: the upload, the output
# of llama-quantize, and a copy of that under its digest (server/create.go). One remains if
# llama-quantize would have written the same bytes; otherwise two, until the daemon is restarted an
# hour or more later.
CREATE_COPIES = 3
QUESTION = "Hello! Who are you?"
_ANSWER_TOKENS = 48
_VERSION_TIMEOUT_S = 10.0
_UPLOAD_BYTES = 1 << 20
# The models folder of the system service that the Linux installer sets up.
_SERVICE_MODELS = Path("/usr/share/ollama/.ollama/models")


@dataclass(frozen=True)
class Registration:
    """A registered model that is as it was built, and that answers.

    Attributes:
        name: the model's name.
        digest: the digest of its manifest; `ollama list` shows the first digits as the id.
        capabilities: the abilities that the daemon reports for it, such as `tools`.
        template_in_force: `TEMPLATE` (the Modelfile's) or `native` (the GGUF's own).
        answer: a short answer of the model.
        done_reason: `stop` if the answer ended by itself, `length` if it was cut.
    """

    name: str
    digest: str
    capabilities: tuple[str, ...]
    template_in_force: str
    answer: str
    done_reason: str


class Daemon:
    """An Ollama daemon, reached through its API alone.

    Every method raises `DaemonError` if the daemon cannot be reached or stops answering, and
    `RegistrationError` if it refuses the request.

    Args:
        host: the daemon's address; None for OLLAMA_HOST, or else 127.0.0.1:11434.
    """

    def __init__(self, host: str | None = None) -> None:
        self._host = host

    @cached_property
    def _connection(self) -> Connection:
        return Connection(self._host)

    @property
    def host(self) -> str:
        """The address as a URL."""
        return self._connection.host

    @property
    def is_local(self) -> bool:
        """Whether the daemon runs on this machine, and so uses its disk."""
        return self._connection.is_local

    def version(self) -> str:
        """The daemon's version, such as `0.32.15`."""
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
        """The likely models folder of a daemon on this machine; None for another machine's.

        The daemon does not report it. This is OLLAMA_MODELS, else the user's folder, else that of
        the Linux system service if only that one exists.
        """
        if not self.is_local:
            return None
        if folder := os.environ.get("OLLAMA_MODELS"):
            return Path(folder)
        own = Path.home() / ".ollama" / "models"
        if sys.platform == "linux" and not own.is_dir() and _SERVICE_MODELS.is_dir():
            return _SERVICE_MODELS
        return own

    def has_blob(self, digest: str) -> bool:
        """Whether the daemon already has the file with this digest (`sha256:...`)."""
        with self._connection.errors_while("looking for a file"):
            response = self._connection.http.head(f"/api/blobs/{digest}")
            if response.status_code == 404:
                return False
            self._connection.refuse_failure(response)
            return True

    def upload(
        self, path: Path, progress: Progress | None = None, *, sha256: str | None = None
    ) -> str:
        """Send the daemon a file, unless it has it; returns the digest (`sha256:...`).

        The daemon computes the digest itself, and keeps only a file that arrives complete.

        Args:
            path: the file.
            progress: told the bytes sent.
            sha256: the file's digest in hexadecimal, if the caller knows it.
        """
        progress = progress or Silent()
        digest = f"sha256:{sha256 or sha256_file(path)}"
        if self.has_blob(digest):
            progress.note(f"{path.name}: {self.host} already has it")
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
        settings: ModelSettings,
    ) -> None:
        """Register uploaded GGUFs. A model of the same name is replaced when all is in place.

        The daemon rewrites the file first; `CREATE_COPIES` says what that needs on its disk.

        Args:
            name: the model's name.
            files: the digests (`sha256:...`) of the uploaded GGUF, and of the `mmproj` of a
                multimodal model, by file name; the names only appear in the daemon's messages.
            settings: how the daemon should run it.
        """
        doing = f"creating {name}"
        with self._connection.errors_while(doing):
            updates = self._connection.client.create(
                model=validate_name(name),
                files=dict(files),
                template=settings.ollama_template,
                system=settings.system or None,
                # Sent even if it is empty: otherwise `create` adds the stops of the known template
                # that is most like the GGUF's chat template.
                parameters={**settings.parameters, "stop": list(settings.stops)},
                stream=True,
            )
            statuses = [update.status for update in updates]
        if statuses[-1:] != ["success"]:
            raise self._connection.stopped_answering(doing, f"its last status was {statuses[-1:]}")

    def has_model(self, name: str) -> bool:
        """Whether a model of this name is registered."""
        return self._listed_digest(name) is not None

    def show(self, name: str) -> ShowResponse:
        """The daemon's description of a registered model."""
        return read_show_response(
            self._connection.post("/api/show", {"model": name}, f"describing {name}")
        )

    def render(
        self,
        name: str,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] = (),
        thinking: bool | None = None,
    ) -> str | None:
        """The prompt that the daemon renders for a conversation; None if it is too old to say.

        Args:
            name: the model.
            messages: the turns, as for transformers' chat templates.
            tools: JSON schemas of functions.
            thinking: whether to think; None leaves it to the daemon.

        Raises:
            PromptRefusedError: with the daemon's reason, if it refuses the conversation.
        """
        body: dict[str, object] = {
            "model": name,
            "messages": [api_message(message) for message in messages],
            "stream": False,
            # Otherwise the daemon drops the oldest turns if the prompt exceeds the context.
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
        settings: ModelSettings,
        *,
        has_projector: bool = False,
    ) -> Registration:
        """Read a registered model back, and let it answer once.

        Args:
            name: the model.
            settings: the settings that were sent.
            has_projector: whether an `mmproj` was sent.

        Raises:
            RegistrationError: if the daemon has something else than what was sent, or the model
                does not answer.
        """
        response = self.show(name)
        require_as_sent(name, response, settings)
        if has_projector and not {"vision", "audio"} & set(response.capabilities):
            raise RegistrationError(
                f"{name} was registered with an mmproj, but {self.host} reports neither `vision` "
                f"nor `audio` for it, only {', '.join(response.capabilities)}.",
                next_step="Update Ollama, or package the text model alone with --text-only.",
            )
        answer, done_reason = self._answer(name, QUESTION)
        return Registration(
            name=name,
            digest=self._digest(name),
            capabilities=response.capabilities,
            template_in_force=response.template_in_force,
            answer=answer,
            done_reason=done_reason,
        )

    def delete(self, name: str) -> None:
        """Remove a model from the daemon; files that other models share stay."""
        with self._connection.errors_while(f"deleting {name}"):
            self._connection.client.delete(name)

    def rename(self, source: str, destination: str) -> None:
        """Give a model another name; then remove the model that had that name before."""
        replaced = with_suffix(destination, "-replaced")
        had_one = self.has_model(destination)
        if had_one:
            self.copy(destination, replaced)
        self.copy(source, destination)
        self.delete(source)
        if had_one:
            # To overwrite the name alone would leave its files behind.
            self.delete(replaced)

    def copy(self, source: str, destination: str) -> None:
        """Give a registered model a second name, with the same files."""
        with self._connection.errors_while(f"copying {source} to {destination}"):
            self._connection.client.copy(source, validate_name(destination))

    def _answer(self, name: str, question: str) -> tuple[str, str]:
        """A short answer, the same each time, and the reason why it ended."""
        with self._connection.errors_while(f"letting {name} answer"):
            reply = self._connection.client.chat(
                model=name,
                messages=[{"role": "user", "content": question}],
                options={"num_predict": _ANSWER_TOKENS, "temperature": 0, "seed": 1},
            )
        # A thinking model may not have finished thinking when the answer is cut.
        return reply.message.content or reply.message.thinking or "", reply.done_reason or ""

    def _digest(self, name: str) -> str:
        digest = self._listed_digest(name)
        if digest is None:
            raise RegistrationError(
                f"{name} answers, but {self.host} does not list it.",
                next_step="Look at the daemon's log, and register the model again.",
            )
        return digest

    def _listed_digest(self, name: str) -> str | None:
        """The digest of a model's manifest; None if the daemon does not list it."""
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
