"""`ftpack ollama` against a real daemon."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ollama
import pytest

from tests.command import ftpack
from tests.daemon import OllamaDaemon
from tests.vision import VisionKind, make_vision_adapter, png

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
    model = client.show("one")
    assert model.parameters is not None
    assert 'stop                           "<|im_end|>"' in model.parameters
    assert "num_ctx" in model.parameters
    # The daemon offers everything that the chat template can do.
    assert {"completion", "tools", "thinking"} <= set(model.capabilities or [])
    assert model.modelfile is not None
    assert "You are terse." in model.modelfile
    reply = client.chat("one", [{"role": "user", "content": "Hi"}], options={"num_predict": 3})
    assert reply.message.role == "assistant"
    # The bytes that run are the bytes that were built: the daemon's rewrite on create changes none.
    (gguf,) = report["manifest"]["ggufs"]
    assert f"sha256-{gguf['sha256']}" in model.modelfile
    # The folder contains only the bundle, and no 16-bit file.
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


def test_a_daemon_that_drops_the_upload_gives_exit_code_4_and_the_bundle_is_kept(
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


def test_host_replaces_the_daemon_of_the_environment(
    adapter: Callable[..., Path], ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    result = ftpack(
        "ollama", adapter("llama"), "--quant", "q8_0", "--name", "y",
        "--host", ollama_daemon.host, host="127.0.0.1:1", folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert ollama_daemon.host.rpartition(":")[2] in result.stderr


def test_ollama_renders_with_the_chat_template_that_was_chosen(
    small_model: Callable[..., Path],
    ollama_daemon: OllamaDaemon,
    tmp_path: Path,
) -> None:
    """Ollama gives a chat template that it knows a TEMPLATE and stops of its own on create."""
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


def test_a_multimodal_model_in_ollama_takes_images(
    vision_model: Callable[[VisionKind], Path],
    ollama_binary: Path,
    ollama_daemon: OllamaDaemon,
    client: ollama.Client,
    tmp_path: Path,
) -> None:
    lora = make_vision_adapter(vision_model("qwen2_5_vl"), tmp_path / "lora")
    result = ftpack(
        "ollama", lora, "--quant", "q8_0", "--quant", "q4_k_m", "--name", "multimodal",
        host=ollama_daemon.host, folder=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    # The daemon inserts images itself: the user learns that only text is compared.
    assert any("text" in line and "compared" in line for line in result.stderr.splitlines())

    def tokens(model: str, **images: list[bytes]) -> int:
        reply = client.chat(
            model,
            messages=[{"role": "user", "content": "What is it?", **images}],
            options={"num_predict": 1, "temperature": 0},
        )
        assert reply.prompt_eval_count is not None
        return reply.prompt_eval_count

    for model in ("multimodal:q8_0", "multimodal:q4_k_m"):
        assert "vision" in (client.show(model).capabilities or [])
        assert tokens(model, images=[png(112, 112)]) >= tokens(model) + 16
    result = ftpack(
        "register", tmp_path / "multimodal-gguf", "--name", "again", "--quant", "q8_0",
        host=ollama_daemon.host, folder=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    subprocess.run(
        [str(ollama_binary), "create", "byhand", "-f", "Modelfile"],
        cwd=tmp_path / "multimodal-gguf",
        env={"OLLAMA_HOST": ollama_daemon.host, "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    for model in ("again", "byhand"):
        assert tokens(model, images=[png(112, 112)]) >= tokens(model) + 16
