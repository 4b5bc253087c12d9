"""A real daemon registers what was sent, or there is an error."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import llama_cpp
import pytest

from packager.errors import DaemonError, InvalidNameError, RegistrationError, UsageError
from packager.progress import Silent, Task
from packager.runtime.daemon import Daemon
from tests.daemon import OllamaDaemon, running_daemon
from tests.runtime.chain_gguf import ANSWER, CHAT_TEMPLATE, write_chain_gguf

# The same conversation as `CHAT_TEMPLATE` renders, in Go.
OLLAMA_TEMPLATE = (
    "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}</s>\n{{ end }}<|assistant|>\n"
)
QUESTION = [{"role": "user", "content": "Who goes there?"}]
PROMPT = "<|user|>\nWho goes there?</s>\n<|assistant|>\n"


class Recorder(Silent):
    """Counts the progress that a stage reports."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done = 0
        self.total = 0

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def task(self, label: str, total: int, unit: str = "bytes") -> Iterator[Task]:
        self.total += total
        yield self

    def advance(self, amount: int) -> None:
        self.done += amount


def register(
    daemon: Daemon,
    name: str,
    gguf: Path,
    *,
    ollama_template: str | None = None,
    system: str | None = None,
    stops: tuple[str, ...] = (),
) -> None:
    digest = daemon.upload(gguf)
    daemon.create(
        name,
        {gguf.name: digest},
        ollama_template=ollama_template,
        system=system,
        stops=stops,
        parameters={},
    )


@contextmanager
def answering(status: int, body: object) -> Iterator[str]:
    """A server that gives the same answer to every request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_POST = do_GET

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestReaching:
    def test_ollama_host_names_the_daemon(
        self, ollama_daemon: OllamaDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OLLAMA_HOST", ollama_daemon.host)
        daemon = Daemon()
        assert daemon.host == f"http://{ollama_daemon.host}"
        assert daemon.version().split(".")[0].isdigit()
        assert daemon.is_local

    def test_without_ollama_host_the_usual_port_is_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OLLAMA_HOST", raising=False)
        assert Daemon().host == "http://127.0.0.1:11434"

    def test_the_address_to_listen_everywhere_is_this_machine(self) -> None:
        daemon = Daemon("0.0.0.0:1234")
        assert daemon.host == "http://127.0.0.1:1234"
        assert daemon.is_local

    def test_no_proxy_is_used_to_reach_this_machine(
        self, ollama_daemon: OllamaDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert Daemon(ollama_daemon.host).version()

    def test_no_daemon_is_exit_code_4_and_says_how_to_start_one(self) -> None:
        with pytest.raises(DaemonError, match="No Ollama daemon answers") as caught:
            Daemon(f"127.0.0.1:{free_port()}").version()
        assert caught.value.exit_code == 4
        assert "ollama serve" in caught.value.next_step

    def test_is_reachable_says_whether_a_daemon_answers(self, daemon: Daemon) -> None:
        assert daemon.is_reachable()
        assert not Daemon(f"127.0.0.1:{free_port()}").is_reachable()

    @pytest.mark.parametrize("body", [{}, [], {"version": 3}, "hello"])
    def test_another_server_is_not_mistaken_for_ollama(self, body: object) -> None:
        with (
            answering(200, body) as host,
            pytest.raises(DaemonError, match="does not speak Ollama"),
        ):
            Daemon(host).version()

    def test_an_invalid_address_is_a_usage_error(self) -> None:
        for host in ("host:port", "ftp://127.0.0.1"):
            with pytest.raises(UsageError, match="address"):
                Daemon(host).version()

    def test_the_models_folder_of_another_machine_is_unknown(self) -> None:
        assert Daemon("192.0.2.1").models_folder() is None

    def test_the_models_folder_is_ollamas_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".ollama" / "models").mkdir(parents=True)
        monkeypatch.delenv("OLLAMA_MODELS", raising=False)
        assert Daemon("127.0.0.1").models_folder() == tmp_path / ".ollama" / "models"
        monkeypatch.setenv("OLLAMA_MODELS", "/elsewhere")
        assert Daemon("127.0.0.1").models_folder() == Path("/elsewhere")


class TestUpload:
    def test_a_file_is_sent_once(
        self, daemon: Daemon, ollama_daemon: OllamaDaemon, tmp_path: Path
    ) -> None:
        file = tmp_path / "some.gguf"
        file.write_bytes(os.urandom(3_000_000))
        digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        assert not daemon.has_blob(digest)

        first, second = Recorder(), Recorder()
        assert daemon.upload(file, first) == digest
        assert daemon.upload(file, second) == digest

        stored = ollama_daemon.models / "blobs" / digest.replace(":", "-")
        assert stored.read_bytes() == file.read_bytes()
        assert (first.done, first.total) == (3_000_000, 3_000_000)
        assert second.total == 0
        assert file.name in second.notes[0]

    def test_a_file_with_another_digest_is_refused(self, daemon: Daemon, tmp_path: Path) -> None:
        file = tmp_path / "other.gguf"
        file.write_bytes(b"changed meanwhile")
        with pytest.raises(RegistrationError, match="digest mismatch"):
            daemon.upload(file, sha256="0" * 64)
        assert not daemon.has_blob("sha256:" + "0" * 64)


class TestCreate:
    def test_the_ggufs_own_chat_template_renders(self, daemon: Daemon, chain_gguf: Path) -> None:
        register(daemon, "native", chain_gguf)
        result = daemon.verify("native", None, [], parameters={})
        assert daemon.show("native").template_text == CHAT_TEMPLATE
        assert result.template_in_force == "native"
        assert result.answer == ANSWER
        assert result.done_reason == "stop"
        assert result.capabilities == ("completion",)
        assert len(result.digest) == 64
        assert daemon.render("native", QUESTION) == PROMPT

    def test_an_ollama_template_that_is_sent_renders(
        self, daemon: Daemon, chain_gguf: Path
    ) -> None:
        register(daemon, "go", chain_gguf, ollama_template=OLLAMA_TEMPLATE, stops=("</s>",))
        result = daemon.verify("go", OLLAMA_TEMPLATE, ["</s>"])
        assert result.template_in_force == "TEMPLATE"
        assert result.answer == ANSWER
        assert daemon.render("go", QUESTION) == PROMPT

    def test_awkward_texts_arrive_unchanged(self, daemon: Daemon, chain_gguf: Path) -> None:
        system = 'Say """ahoy"""\nRENDERER none\n{{ .System }} \u00a0\u2028'
        stops = ('"quoted"', "back\\slash", "new\nline", "\u2028", "\x00é\U0001f3f4")
        parameters = {"temperature": 0.7, "num_ctx": 512, "seed": 2**40, "min_p": 1e-7}
        digest = daemon.upload(chain_gguf)
        daemon.create(
            "awkward",
            {"chain.gguf": digest},
            ollama_template=None,
            system=system,
            stops=stops,
            parameters=parameters,
        )
        assert daemon.show("awkward").system == system
        assert daemon.verify("awkward", None, stops, parameters=parameters).done_reason == "stop"

    def test_without_stops_ollama_adds_none(self, daemon: Daemon, tmp_path: Path) -> None:
        # Without the padding Ollama recognises ChatML, and would add its stops.
        gguf = write_chain_gguf(tmp_path / "chatml.gguf", chat_template=CHATML)
        register(daemon, "no-stops", gguf, ollama_template=OLLAMA_TEMPLATE)
        assert daemon.show("no-stops").stops == ()

    def test_a_model_of_that_name_is_replaced(self, daemon: Daemon, chain_gguf: Path) -> None:
        register(daemon, "twice", chain_gguf, stops=("a",), system="first")
        register(daemon, "Twice:latest", chain_gguf, stops=("b",))
        response = daemon.show("twice")
        assert (response.stops, response.system) == (("b",), "")

    def test_a_copy_is_the_same_model(self, daemon: Daemon, chain_gguf: Path) -> None:
        register(daemon, "tags:q4_k_m", chain_gguf)
        daemon.copy("tags:q4_k_m", "tags")
        digests = {daemon.verify(name, None, []).digest for name in ("tags", "tags:q4_k_m")}
        assert len(digests) == 1

    def test_a_file_that_is_not_a_gguf_is_refused_and_nothing_is_registered(
        self, daemon: Daemon, tmp_path: Path
    ) -> None:
        file = tmp_path / "no.gguf"
        file.write_bytes(b"GGUF" + bytes(100))
        with pytest.raises(RegistrationError) as caught:
            register(daemon, "broken", file)
        assert caught.value.exit_code == 1
        with pytest.raises(RegistrationError, match="not found"):
            daemon.show("broken")

    def test_the_daemon_keeps_one_copy_of_a_gguf_as_llama_cpp_writes_it(
        self, daemon: Daemon, ollama_daemon: OllamaDaemon, tmp_path: Path
    ) -> None:
        source = write_chain_gguf(tmp_path / "source.gguf", chat_template=CHAT_TEMPLATE + "\n")
        gguf = tmp_path / "q8_0.gguf"
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
        assert llama_cpp.llama_model_quantize(bytes(source), bytes(gguf), parameters) == 0

        blobs = ollama_daemon.models / "blobs"
        before = set(blobs.iterdir())
        register(daemon, "once", gguf)
        added = [path.stat().st_size for path in set(blobs.iterdir()) - before]
        assert [size for size in added if size > 1_000_000] == [gguf.stat().st_size]

    def test_a_bad_name_is_refused(self, daemon: Daemon, chain_gguf: Path) -> None:
        with pytest.raises(InvalidNameError):
            register(daemon, "bad name", chain_gguf)

    def test_an_unknown_architecture_is_refused(self, daemon: Daemon, tmp_path: Path) -> None:
        gguf = write_chain_gguf(tmp_path / "unknown.gguf", architecture="unheard-of")
        with pytest.raises(RegistrationError, match="while creating unknown"):
            register(daemon, "unknown", gguf)

    def test_an_invalid_go_template_is_refused(self, daemon: Daemon, chain_gguf: Path) -> None:
        with pytest.raises(RegistrationError, match="template"):
            register(daemon, "no-go", chain_gguf, ollama_template="{{ if }}")


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class TestVerify:
    def test_a_template_that_ollama_added_is_detected(self, daemon: Daemon, tmp_path: Path) -> None:
        gguf = write_chain_gguf(tmp_path / "chatml.gguf", chat_template=CHATML)
        register(daemon, "unpadded", gguf)
        with pytest.raises(RegistrationError, match="rendered by the Modelfile's TEMPLATE"):
            daemon.verify("unpadded", None, [])

    def test_an_ollama_template_that_is_not_in_force_is_detected(
        self, daemon: Daemon, tmp_path: Path
    ) -> None:
        # A chat template with tools takes precedence over a Go template without.
        jinja = CHAT_TEMPLATE + "{# {{ tools }} #}{% if tools %}{{ tools }}{% endif %}"
        gguf = write_chain_gguf(tmp_path / "tools.gguf", chat_template=jinja)
        register(daemon, "loses", gguf, ollama_template=OLLAMA_TEMPLATE)
        with pytest.raises(RegistrationError, match="GGUF's own chat template, not") as caught:
            daemon.verify("loses", OLLAMA_TEMPLATE, [])
        assert "--template native" in caught.value.next_step

    def test_the_lack_of_any_template_is_detected(self, daemon: Daemon, tmp_path: Path) -> None:
        gguf = write_chain_gguf(tmp_path / "plain.gguf", chat_template=None)
        register(daemon, "plain", gguf)
        with pytest.raises(RegistrationError, match="no template at all"):
            daemon.verify("plain", None, [])

    def test_different_stops_are_detected(self, daemon: Daemon, chain_gguf: Path) -> None:
        register(daemon, "stops", chain_gguf, stops=("a",))
        with pytest.raises(RegistrationError, match="not as sent: stops"):
            daemon.verify("stops", None, ["a", "b"])

    def test_a_different_template_is_detected(self, daemon: Daemon, chain_gguf: Path) -> None:
        register(daemon, "other", chain_gguf, ollama_template=OLLAMA_TEMPLATE)
        with pytest.raises(RegistrationError, match="not as sent: template"):
            daemon.verify("other", OLLAMA_TEMPLATE + " ", [])

    def test_a_model_that_cannot_answer_is_detected(self, daemon: Daemon, tmp_path: Path) -> None:
        # The daemon notices an invalid chat template only when it loads the model.
        gguf = write_chain_gguf(tmp_path / "broken.gguf", chat_template=CHAT_TEMPLATE + "{% if")
        register(daemon, "silent", gguf)
        with pytest.raises(RegistrationError, match="letting silent answer"):
            daemon.verify("silent", None, [])


class TestDaemonDies:
    def test_a_daemon_whose_answer_ends_early(self) -> None:
        with (
            answering(200, {"status": "parsing GGUF"}) as host,
            pytest.raises(DaemonError, match="while creating model") as caught,
        ):
            Daemon(host).create(
                "model",
                {"a.gguf": "sha256:0"},
                ollama_template=None,
                system=None,
                stops=[],
                parameters={},
            )
        assert caught.value.exit_code == 4

    def test_during_an_upload(self, ollama_binary: Path, tmp_path: Path) -> None:
        file = tmp_path / "large.gguf"
        file.write_bytes(bytes(64 << 20))
        with running_daemon(ollama_binary, tmp_path / "ollama") as running:

            class Killer(Recorder):
                def advance(self, amount: int) -> None:
                    super().advance(amount)
                    if self.done >= 8 << 20:
                        running.process.send_signal(signal.SIGKILL)
                        running.process.wait()

            with pytest.raises(DaemonError, match="while receiving large") as caught:
                Daemon(running.host).upload(file, Killer())
            assert caught.value.exit_code == 4
            assert not any((running.models / "blobs").glob("sha256-" + "?" * 64))

    def test_before_the_answer(self, ollama_binary: Path, tmp_path: Path, chain_gguf: Path) -> None:
        with running_daemon(ollama_binary, tmp_path / "ollama") as running:
            daemon = Daemon(running.host)
            register(daemon, "model", chain_gguf)
            running.process.send_signal(signal.SIGKILL)
            running.process.wait()
            with pytest.raises(DaemonError) as caught:
                daemon.verify("model", None, [])
            assert caught.value.exit_code == 4
