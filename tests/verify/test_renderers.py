"""Prompts are compared where they are rendered; a model gets its name only if they are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import ollama
import pytest

from packager.bundle.bundle import write_bundle
from packager.bundle.manifest import BaseIdentity, GgufFile, Manifest, PromptRecord, TrainedTemplate
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.native import PADDING, make_native
from tests.command import ftpack
from tests.daemon import OllamaDaemon
from tests.runtime.chain_gguf import write_chain_gguf

TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DATED = "{% if date_string is not defined %}{% set date_string = '1 May 2025' %}{% endif %}"
# In training this renders its own date; a server defines today's unless the date is pinned.
TRAINED = DATED + "{{ date_string }}\n" + TURNS


def make_bundle(folder: Path, gguf_chat_template: str, trained: str = TRAINED) -> Path:
    """A bundle of a small model whose GGUF can have another chat template than in training."""
    folder.mkdir()
    gguf = write_chain_gguf(
        folder / "m-Q8_0.gguf", chat_template=gguf_chat_template, adds_bos=False
    )
    content = gguf.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    manifest = Manifest(
        schema=4,
        name="m",
        fingerprint="f",
        base=BaseIdentity("base", None, "0"),
        adapters=(),
        combination=None,
        tools={},
        ggufs=(GgufFile("m-Q8_0.gguf", "Q8_0", len(content), sha256, 8.5, ()),),
        projector=None,
        prompt=PromptRecord(
            renderer="native",
            family=None,
            reason="the GGUF's own chat template renders",
            template_origin="a test",
            template=None,
            system=None,
            stops=(),
            parameters={},
            pins={},
            trained=TrainedTemplate(trained, None, {"bos_token": "<s>", "eos_token": "</s>"}, {}),
        ),
    )
    write_bundle(folder, manifest, "FROM ./m-Q8_0.gguf\n")
    return folder


@pytest.fixture
def client(ollama_daemon: OllamaDaemon) -> ollama.Client:
    return ollama.Client(ollama_daemon.host)


def names(client: ollama.Client) -> set[str]:
    return {str(model.model) for model in client.list().models}


def test_a_model_whose_prompt_differs_keeps_a_name_of_its_own(
    ollama_daemon: OllamaDaemon, client: ollama.Client, tmp_path: Path
) -> None:
    host = ollama_daemon.host
    write_chain_gguf(tmp_path / "old.gguf")
    client.create("mine", files={"old.gguf": client.create_blob(tmp_path / "old.gguf")})
    before = client.show("mine").modelfile
    bundle = make_bundle(tmp_path / "bundle", PADDING + TRAINED)

    result = ftpack("register", bundle, "--name", "mine", host=host, folder=tmp_path)

    assert result.returncode == 5
    assert "mine-unproved is registered, but not as mine" in result.stderr
    assert "'one user turn'" in result.stderr
    assert "Traceback" not in result.stderr
    assert "mine-unproved:latest" in names(client)
    assert client.show("mine").modelfile == before

    result = ftpack("prompt", "mine-unproved", host=host, folder=tmp_path)
    assert result.returncode == 5, result.stderr
    assert "+" in result.stderr
    assert "1·May·2025" in result.stderr or "1 May 2025" in result.stderr

    forced = ftpack("register", bundle, "--name", "mine", "--force", host=host, folder=tmp_path)

    assert forced.returncode == 0, forced.stderr
    assert "'one user turn'" in forced.stderr
    assert client.show("mine").modelfile != before
    assert not {"mine-unproved:latest", "mine-replaced:latest"} & names(client)


def test_the_same_model_with_its_pin_gets_its_name(
    ollama_daemon: OllamaDaemon, client: ollama.Client, tmp_path: Path
) -> None:
    native = make_native(ChatTemplate(TRAINED, "a test", "<s>", "</s>"))
    assert native.pins == {"date_string": '"1 May 2025"'}
    bundle = make_bundle(tmp_path / "bundle", native.gguf_chat_template)

    result = ftpack(
        "register", bundle, "--name", "pinned:tag", "--json", host=ollama_daemon.host,
        folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    (comparison,) = report["comparisons"]
    assert comparison["failed"] == []
    core = [item for item in comparison["conversations"] if item["kind"] == "core"]
    assert {item["outcome"] for item in core} == {"equal"}
    assert core[0]["rendered"].startswith("1 May 2025\n<|user|>\nHi")
    assert "pinned:tag" in names(client)


def test_the_users_own_conversations_are_compared_too(
    ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    turns = [{"role": "user", "content": "late"}, {"role": "assistant", "content": "A"}]
    own.write_text(json.dumps({"messages": turns}))
    # Every conversation of the battery is equal; the user's is not.
    trained = "{% if messages[0].content == 'late' %}x{% endif %}" + TURNS
    bundle = make_bundle(tmp_path / "bundle", PADDING + TURNS, trained)

    result = ftpack(
        "register", bundle, "--name", "own", "--conversations", own, host=ollama_daemon.host,
        folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 5
    assert "own.jsonl, line 1" in result.stderr
    plain = ftpack("register", bundle, "--name", "own", host=ollama_daemon.host, folder=tmp_path)
    assert plain.returncode == 0, plain.stderr


def test_a_bundle_for_the_ggufs_own_chat_template_is_refused_for_an_older_server(
    tmp_path: Path, old_server: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle", PADDING + TURNS, TURNS)
    result = ftpack("register", bundle, "--name", "old", host=old_server, folder=tmp_path)
    assert result.returncode == 1
    assert "0.24.0" in result.stderr
    assert "--ollama-version 0.24.0" in result.stderr


@pytest.fixture
def old_server() -> Iterator[str]:
    """A server that claims to be an old Ollama; it only answers with its version."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            body = b'{"version": "0.24.0"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_prompt_of_a_bundle_as_a_table_as_json_and_side_by_side(
    ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", PADDING + TRAINED)
    host = ollama_daemon.host

    table = ftpack("prompt", bundle, host=host, folder=tmp_path)
    # The embedded runtime renders the unpinned template as in training, which no server does; the
    # offline level assumes the pinned one that ftpack would have put into the GGUF.
    assert table.returncode == 0, table.stderr
    assert table.stdout.splitlines()[0].split() == ["N", "conversation", "offline", "embedded"]
    first = next(line for line in table.stdout.splitlines() if "one user turn" in line)
    assert first.split() == ["1", "one", "user", "turn", "equal", "equal"]

    record = json.loads(ftpack("prompt", bundle, "--json", host=host, folder=tmp_path).stdout)
    assert [comparison["level"] for comparison in record["comparisons"]] == ["offline", "embedded"]

    result = ftpack("prompt", bundle, "--show", "1", host=host, folder=tmp_path)
    assert "<|user|>⏎" in result.stdout
    assert "Hi</s>⏎" in result.stdout
    wrong = ftpack("prompt", bundle, "--show", "999", host=host, folder=tmp_path)
    assert wrong.returncode == 2


@pytest.mark.slow
def test_the_prompt_of_a_source_is_compared_with_its_token_ids(
    adapter: Callable[..., Path], ollama_daemon: OllamaDaemon, tmp_path: Path
) -> None:
    source = adapter("llama")
    build = ftpack(
        "ollama", source, "--quant", "q8_0", "--name", "compared", host=ollama_daemon.host,
        folder=tmp_path,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    result = ftpack(
        "prompt", source, "--name", "compared", "--against", ollama_daemon.host, "--json",
        host=ollama_daemon.host, folder=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    offline, embedded, daemon = json.loads(result.stdout)["comparisons"]
    for comparison in (offline, embedded, daemon):
        core = [item for item in comparison["conversations"] if item["kind"] == "core"]
        assert {item["outcome"] for item in core} <= {"equal", "unsupported"}
    rendered = [c for c in embedded["conversations"] if c["outcome"] != "unsupported"]
    assert {item["same_ids"] for item in rendered} == {True}
    # The offline level predicts what the daemon renders, except for what it refuses.
    for predicted, actual in zip(offline["conversations"], daemon["conversations"], strict=True):
        if actual["rendered"] is not None and actual["kind"] != "prefill":
            assert predicted["rendered"] == actual["rendered"], actual["name"]


def test_a_wrong_pre_tokenizer_is_detected_by_its_token_ids(
    small_model: Callable[..., Path], llama_cpp_source: Path, tmp_path: Path
) -> None:
    """HAZARD: a GGUF splits text in another way than the training tokenizer."""
    from packager.errors import PromptDifferenceError
    from packager.model.model_file import ModelFile
    from packager.model.tokenizer import load_tokenizer
    from packager.prompt.chat_template import load_chat_template
    from packager.prompt.conversation import CORE
    from packager.runtime.gguf_vocabulary import GgufVocabulary
    from packager.verify.renderers import compare_embedded, require_equal
    from testing.usual_route import convert_with_llama_cpp

    model = small_model("llama")
    gguf = convert_with_llama_cpp(model, tmp_path / "m.gguf", "bf16", llama_cpp_source)
    files = {path.name: ModelFile(path) for path in model.iterdir()}
    chat_template = load_chat_template(files, {}, None)
    assert chat_template is not None
    tokenize = load_tokenizer(files, tmp_path)
    with GgufVocabulary(gguf) as vocabulary:
        right = compare_embedded(chat_template, vocabulary, CORE, tokenize)
    assert all(item.has_same_ids for item in right.compared)
    content = gguf.read_bytes()
    assert content.count(b"llama-bpe") == 1
    gguf.write_bytes(content.replace(b"llama-bpe", b"codeshell"))
    with GgufVocabulary(gguf) as vocabulary:
        wrong = compare_embedded(chat_template, vocabulary, CORE, tokenize)
    with pytest.raises(PromptDifferenceError, match="token ids of"):
        require_equal(wrong, "m", "")
