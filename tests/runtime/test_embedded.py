"""A GGUF answers without a daemon, with its own chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from packager.errors import (
    ChatTemplateError,
    CorruptFileError,
    FtpackError,
    SourceNotFoundError,
    UnsupportedError,
)
from packager.runtime.embedded import EmbeddedModel
from packager.scalar import Scalar
from tests.runtime.chain_gguf import ANSWER, write_chain_gguf

QUESTION = [{"role": "user", "content": "Who goes there?"}]


@dataclass(frozen=True)
class Answer:
    pieces: list[str]
    finish_reason: str | None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def ask(
    gguf: Path,
    messages: list[dict[str, str]] = QUESTION,
    *,
    stops: tuple[str, ...] = (),
    max_tokens: int = 48,
    parameters: dict[str, Scalar] | None = None,
) -> Answer:
    with EmbeddedModel(gguf, n_ctx=512, threads=2) as model:
        stream = model.stream(
            messages,
            stops=stops,
            max_tokens=max_tokens,
            parameters={"temperature": 0, **(parameters or {})},
        )
        return Answer(list(stream), stream.finish_reason)


def test_an_answer_ends_by_itself(chain_gguf: Path) -> None:
    answer = ask(chain_gguf)
    assert answer.text == ANSWER
    assert len(answer.pieces) > 1
    assert answer.finish_reason == "stop"


def test_a_cut_answer_has_another_finish_reason(chain_gguf: Path) -> None:
    answer = ask(chain_gguf, max_tokens=2)
    assert answer.text == ANSWER[:2]
    assert answer.finish_reason == "length"


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(chain_gguf: Path) -> None:
    answer = ask(chain_gguf, stops=("oy",))
    assert answer.text == "ah"
    assert answer.finish_reason == "stop"


def test_a_model_that_is_loaded_once_answers_several_questions(chain_gguf: Path) -> None:
    with EmbeddedModel(chain_gguf, n_ctx=512, threads=2) as model:
        for _ in range(2):
            stream = model.stream(QUESTION, stops=[], max_tokens=48, parameters={"temperature": 0})
            assert "".join(stream) == ANSWER


def test_nothing_is_printed(chain_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ask(chain_gguf)
    assert capfd.readouterr() == ("", "")


def test_a_model_without_chat_template_is_refused(tmp_path: Path) -> None:
    gguf = write_chain_gguf(tmp_path / "plain.gguf", chat_template=None)
    with pytest.raises(ChatTemplateError, match="no chat template"):
        ask(gguf)


def test_an_invalid_chat_template_is_refused(tmp_path: Path) -> None:
    gguf = write_chain_gguf(tmp_path / "broken.gguf", chat_template="{% if")
    with pytest.raises(ChatTemplateError, match=r"broken\.gguf is not valid Jinja"):
        ask(gguf)


def test_a_refusal_of_the_chat_template_is_reported(tmp_path: Path) -> None:
    refusal = "{{ raise_exception('no system turns, please') }}"
    gguf = write_chain_gguf(tmp_path / "strict.gguf", chat_template=refusal)
    with pytest.raises(ChatTemplateError, match="no system turns, please"):
        ask(gguf)


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
    with pytest.raises(FtpackError, match="512"):
        ask(chain_gguf, [{"role": "user", "content": "long" * 200}])


def test_an_unknown_parameter_is_refused(chain_gguf: Path) -> None:
    with pytest.raises(UnsupportedError, match="repeat_last_n"):
        ask(chain_gguf, parameters={"repeat_last_n": 64})
