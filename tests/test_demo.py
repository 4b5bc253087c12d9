"""The demo's questions are not in its training data, and its chat template is Gemma's."""

from __future__ import annotations

from demo.ask import QUESTIONS
from demo.questions import read_examples
from demo.train import CHAT_TEMPLATE_FILE
from packager.prompt.chat_template import load_chat_template


def test_the_demo_asks_no_question_from_the_training_data() -> None:
    assert not {example.question for example in read_examples()} & set(QUESTIONS)


def test_every_training_answer_has_the_pirates_voice() -> None:
    answers = [example.answer for example in read_examples()]
    assert len(answers) >= 30
    assert [a for a in answers if not (a.startswith("Arr, ") and a.endswith(", matey!"))] == []


def test_the_chat_template_writes_gemmas_turns() -> None:
    chat_template = load_chat_template({}, {}, CHAT_TEMPLATE_FILE)
    assert chat_template is not None
    rendered = chat_template.render(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Arr"}],
        add_generation_prompt=True,
    )
    assert rendered.endswith(
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nArr<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
