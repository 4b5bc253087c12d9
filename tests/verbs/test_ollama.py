"""`ftpack ollama` and `ftpack register` against a real daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ollama
import pytest

from tests.command import ftpack
from tests.daemon import OllamaDaemon, find_ollama, running_daemon

pytestmark = pytest.mark.slow


@pytest.fixture
def client(ollama_daemon: OllamaDaemon) -> ollama.Client:
    return ollama.Client(ollama_daemon.host)


def test_an_adapter_becomes_a_model_that_answers(
    adapter: Callable[..., Path],
    ollama_daemon: OllamaDaemon,
    client: ollama.Client,
    tmp_path: Path,
) -> None:
    result = ftpack(
        "ollama", adapter("qwen3"), "--quant", "q8_0", "--name", "one", "--json",
        "--system", "You are terse.", "--param", "num_ctx=1024",
        host=ollama_daemon.host, folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["ollama"]["names"] == ["one"]
    shown = client.show("one")
    assert shown.parameters is not None
    assert 'stop                           "<|im_end|>"' in shown.parameters
    assert "num_ctx" in shown.parameters
    # What the chat template can do is what the daemon offers: nothing was lost on the way.
    assert {"completion", "tools", "thinking"} <= set(shown.capabilities or [])
    assert shown.modelfile is not None
    assert "You are terse." in shown.modelfile
    reply = client.chat("one", [{"role": "user", "content": "Hi"}], options={"num_predict": 3})
    assert reply.message.role == "assistant"
    # The bytes that run are the bytes that were built: the daemon's rewrite on create changes none.
    (gguf,) = report["manifest"]["ggufs"]
    assert f"sha256-{gguf['sha256']}" in shown.modelfile
    # Nothing 16-bit is left, or ever was, beside the bundle.
    assert sorted(path.name for path in (tmp_path / "one-gguf").iterdir()) == [
        "Modelfile", "SHA256SUMS", "manifest.json", "one-Q8_0.gguf",
    ]  # fmt: skip


def test_several_quants_become_tags_and_latest_is_the_first(
    adapter: Callable[..., Path],
    ollama_daemon: OllamaDaemon,
    client: ollama.Client,
    tmp_path: Path,
) -> None:
    result = ftpack(
        "ollama", adapter("llama"), "--quant", "q4_k_m", "--quant", "q8_0", "--name", "several",
        host=ollama_daemon.host, folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    digests = {
        model.model: model.digest
        for model in client.list().models
        if model.model and model.model.startswith("several:")
    }
    assert set(digests) == {"several:q4_k_m", "several:q8_0", "several:latest"}
    assert digests["several:latest"] == digests["several:q4_k_m"]
    for tag, level in (("q4_k_m", "Q4_K_M"), ("q8_0", "Q8_0")):
        details = client.show(f"several:{tag}").details
        assert details is not None
        assert details.quantization_level == level


def test_without_a_daemon_everything_is_built_and_the_one_command_registers_it(
    adapter: Callable[..., Path],
    ollama_daemon: OllamaDaemon,
    client: ollama.Client,
    tmp_path: Path,
) -> None:
    result = ftpack(
        "ollama", adapter("llama"), "--quant", "q8_0", "--name", "later",
        host="127.0.0.1:1", folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 4
    assert (tmp_path / "later-gguf" / "later-Q8_0.gguf").is_file()
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Next: ")]
    command = line.rpartition("ftpack ")[2].split()
    assert command == ["register", "later-gguf", "--name", "later"]

    done = ftpack(*command, host=ollama_daemon.host, folder=tmp_path)

    assert done.returncode == 0, done.stderr
    assert client.show("later").details is not None


@pytest.fixture
def dying_daemon() -> Iterator[str]:
    """A server that answers like Ollama, and drops the connection when a blob comes."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            body = b'{"version": "0.32.15"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(1 << 20)
            self.close_connection = True
            self.connection.close()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_daemon_that_drops_the_upload_is_exit_code_4_and_the_bundle_is_kept(
    adapter: Callable[..., Path], dying_daemon: str, tmp_path: Path
) -> None:
    result = ftpack(
        "ollama", adapter("llama"), "--quant", "q8_0", "--name", "x",
        host=dying_daemon, folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 4, result.stderr
    assert "ftpack register x-gguf --name x" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "x-gguf" / "x-Q8_0.gguf").is_file()


def test_a_real_daemon_that_is_killed_midway_is_exit_code_4(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    binary = find_ollama()
    if binary is None:
        pytest.skip("no Ollama here")
    built = ftpack(
        "gguf", adapter("llama"), "--quant", "f32", "--name", "x",
        host="127.0.0.1:1", folder=tmp_path,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    with running_daemon(binary, tmp_path / "daemon") as daemon:
        process = subprocess.Popen(
            [sys.executable, "-m", "packager", "register", "x-gguf", "--name", "x"],
            cwd=tmp_path,
            env=os.environ | {"OLLAMA_HOST": daemon.host},
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not any((daemon.models / "blobs").glob("*")):
            pass
        os.killpg(daemon.process.pid, signal.SIGKILL)
        _, errors = process.communicate()

    assert process.returncode == 4, errors
    assert "Next: " in errors


def test_a_full_disk_of_the_daemon_is_refused_before_the_work(
    ollama_daemon: OllamaDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    from packager.errors import DiskSpaceError
    from packager.runtime.daemon import Daemon
    from packager.verbs.register import require_store_space

    # Two files are kept, and the larger one stands there three times while create rewrites it.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=39 << 20))
    with pytest.raises(DiskSpaceError, match=r"Ollama's copy .* 44\.0 MiB"):
        require_store_space(Daemon(ollama_daemon.host), [8 << 20, 8 << 20 | 4 << 20])
    require_store_space(Daemon(ollama_daemon.host), [5 << 20, 10 << 20])


def test_a_daemon_of_another_host_is_named(
    adapter: Callable[..., Path], ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    result = ftpack(
        "ollama", adapter("llama"), "--quant", "q8_0", "--name", "y",
        "--host", ollama_daemon.host, host="127.0.0.1:1", folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert ollama_daemon.host.rpartition(":")[2] in result.stderr


def test_what_is_in_force_is_what_was_decided(
    small_model: Callable[..., Path],
    ollama_daemon: OllamaDaemon,
    tmp_path: Path,
) -> None:
    """A template that Ollama knows would get a TEMPLATE and stops of its own on create."""
    from packager.runtime.daemon import Daemon

    result = ftpack(
        "ollama", small_model("gemma3"), "--quant", "q8_0", "--name", "forced",
        "--template", "native", "--json", host=ollama_daemon.host, folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["ollama"]["renderer"] == "native"
    from transformers import AutoTokenizer

    messages = [
        {"role": "user", "content": " Who are you? "},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": "Really?"},
    ]
    tokenizer = AutoTokenizer.from_pretrained(small_model("gemma3"))
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    rendered = Daemon(ollama_daemon.host).render("forced", messages)
    assert rendered == expected.removeprefix(tokenizer.bos_token)
