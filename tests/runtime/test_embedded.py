"""A GGUF answers without a daemon, with the chat template that it carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.errors import (
    ChatTemplateError,
    CorruptFileError,
    FtpackError,
    SourceNotFoundError,
    UnsupportedError,
)
from packager.runtime.embedded import ChatStream, EmbeddedModel, stream_chat
from packager.scalar import Scalar
from tests.runtime.chain_gguf import ANSWER, write_chain_gguf

QUESTION = [{"role": "user", "content": "Who goes there?"}]


def ask(
    gguf: Path,
    messages: list[dict[str, str]] = QUESTION,
    *,
    stops: tuple[str, ...] = (),
    max_tokens: int = 48,
    parameters: dict[str, Scalar] | None = None,
) -> ChatStream:
    return stream_chat(
        gguf,
        messages,
        stops=stops,
        max_tokens=max_tokens,
        n_ctx=512,
        threads=2,
        parameters={"temperature": 0, **(parameters or {})},
    )


def test_an_answer_ends_by_itself(chain_gguf: Path) -> None:
    stream = ask(chain_gguf)
    pieces = list(stream)
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 1
    assert stream.finish_reason == "stop"


def test_a_cut_answer_says_so(chain_gguf: Path) -> None:
    stream = ask(chain_gguf, max_tokens=2)
    assert "".join(stream) == ANSWER[:2]
    assert stream.finish_reason == "length"


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(chain_gguf: Path) -> None:
    stream = ask(chain_gguf, stops=("oy",))
    assert "".join(stream) == "ah"
    assert stream.finish_reason == "stop"


def test_several_questions_need_one_loading(chain_gguf: Path) -> None:
    with EmbeddedModel(chain_gguf, n_ctx=512, threads=2) as model:
        for _ in range(2):
            stream = model.stream(QUESTION, stops=[], max_tokens=48, parameters={"temperature": 0})
            assert "".join(stream) == ANSWER


def test_nothing_is_printed(chain_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    list(ask(chain_gguf))
    assert capfd.readouterr() == ("", "")


def test_a_model_without_chat_template_is_refused(tmp_path: Path) -> None:
    gguf = write_chain_gguf(tmp_path / "plain.gguf", chat_template=None)
    with pytest.raises(ChatTemplateError, match="carries no chat template"):
        ask(gguf)


def test_a_broken_chat_template_is_refused(tmp_path: Path) -> None:
    gguf = write_chain_gguf(tmp_path / "broken.gguf", chat_template="{% if")
    with pytest.raises(ChatTemplateError, match="cannot be read"):
        ask(gguf)


def test_a_conversation_that_the_template_refuses_is_told(tmp_path: Path) -> None:
    refusal = "{{ raise_exception('no system turns, please') }}"
    gguf = write_chain_gguf(tmp_path / "strict.gguf", chat_template=refusal)
    with pytest.raises(ChatTemplateError, match="no system turns, please"):
        list(ask(gguf))


def test_a_truncated_file_is_refused_with_llama_cpps_reason(
    tmp_path: Path, chain_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(chain_gguf.read_bytes()[:1_000_000])
    with pytest.raises(CorruptFileError, match="not within the file bounds"):
        ask(cut)
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        ask(tmp_path / "none.gguf")


def test_a_prompt_longer_than_the_context_is_refused(chain_gguf: Path) -> None:
    with pytest.raises(FtpackError, match="does not fit"):
        list(ask(chain_gguf, [{"role": "user", "content": "long" * 200}]))


def test_a_parameter_without_counterpart_is_refused(chain_gguf: Path) -> None:
    with pytest.raises(UnsupportedError, match="repeat_last_n"):
        ask(chain_gguf, parameters={"repeat_last_n": 64})
