"""The chat template is the one that transformers uses, and renders as transformers does."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from packager.errors import ChatTemplateError, CorruptFileError
from packager.model.model_file import ModelFile
from packager.prompt.chat_template import ChatTemplate, load_chat_template
from packager.prompt.conversation import BATTERY, CORE, TOOLS, Conversation, turns

# Real chat templates of models that are often fine-tuned.
REAL = (
    "google-gemma-2-2b-it",
    "google-gemma-4-31B-it",
    "microsoft-Phi-3.5-mini-instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3.5-4B",
    "HuggingFaceTB-SmolLM3-3B",
    "ibm-granite-granite-4.0",
    "openai-gpt-oss-120b",
    "deepseek-ai-DeepSeek-V3.1",
)
TOOL_USE = "additional_chat_templates/tool_use.jinja"
CONVERSATIONS = (
    turns("Hello?"),
    turns("  Hello? \n", system="Be brief."),
    turns("1 < 2 && '{{ x }}'", "Yes.\n\nNo.", "Why?", "So.", "日本?"),
    turns("Hello?", "<think>hm</think> Hi."),
)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("opens", [True, False])
def test_renders_as_transformers_does(name: str, opens: bool, llama_cpp_source: Path) -> None:
    source = (llama_cpp_source / "models" / "templates" / f"{name}.jinja").read_text()
    chat_template = ChatTemplate(source, name, "<s>", "</s>", {"pad_token": "<pad>"})
    for messages in CONVERSATIONS:
        expected = _apply_chat_template(source, messages, opens)
        if expected is None:
            with pytest.raises(ChatTemplateError, match=name):
                chat_template.render(messages, add_generation_prompt=opens)
        else:
            assert chat_template.render(messages, add_generation_prompt=opens) == expected


@pytest.mark.parametrize("name", REAL)
def test_renders_the_whole_battery_as_transformers_does(name: str, llama_cpp_source: Path) -> None:
    source = (llama_cpp_source / "models" / "templates" / f"{name}.jinja").read_text()
    chat_template = ChatTemplate(source, name, "<s>", "</s>", {"pad_token": "<pad>"})
    for conversation in BATTERY:
        try:
            prompt = chat_template.prompt(conversation)
        except ChatTemplateError:
            prompt = None
        assert prompt == _expected_prompt(source, conversation), conversation.name


def test_the_chat_template_for_tools_is_used_if_there_are_tools() -> None:
    chat_template = ChatTemplate("plain", "a test", None, None, tool_use="{{ tools | length }}")
    assert chat_template.prompt(CORE[0]) == "plain"
    assert chat_template.prompt(TOOLS[0]) == "1"


@pytest.mark.parametrize(
    "source",
    [
        "{% generation %}{{ messages[0].content }}{% endgeneration %}!",
        "{{ [1, {'b': '<é>', 'a': none}] | tojson(indent=2, sort_keys=true) }}{{ '<' | tojson }}",
        "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\nx{% endfor %}",
        "{{ tools is none }}{{ documents is defined }}{{ pad_token }}{{ sep_token }}{{ missing }}",
        "{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}{{ dict(a=1) }}",
        "{{ strftime_now('%Y-%m') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        "{% if %}",
    ],
)
def test_the_environment_is_that_of_transformers(source: str) -> None:
    messages = turns("Hello?")
    chat_template = ChatTemplate(source, "a test", "<s>", "</s>", {"pad_token": "<pad>"})
    expected = _apply_chat_template(source, messages, True)
    if expected is None:
        with pytest.raises(ChatTemplateError) as caught:
            chat_template.render(messages, add_generation_prompt=True)
        assert "a test" in caught.value.message
        assert "--template" in caught.value.next_step
    else:
        assert chat_template.render(messages, add_generation_prompt=True) == expected


def test_a_file_that_the_user_names_comes_first(tmp_path: Path) -> None:
    override = _write(tmp_path / "mine.jinja", "mine").path
    adapter = {"chat_template.jinja": _write(tmp_path / "a.jinja", "adapter")}
    chat_template = load_chat_template(adapter, {}, override)
    assert chat_template is not None
    assert (chat_template.source, chat_template.origin) == ("mine", str(override))


def test_precedence_of_files(tmp_path: Path) -> None:
    places = [
        ("adapter", "chat_template.jinja", "a file of the adapter"),
        ("adapter", "tokenizer_config.json", json.dumps({"chat_template": "adapter's config"})),
        ("base", "chat_template.jinja", "a file of the base"),
        ("base", "tokenizer_config.json", json.dumps({"chat_template": "base's config"})),
    ]
    files: dict[str, dict[str, ModelFile]] = {"adapter": {}, "base": {}}
    for side, name, text in places:
        files[side][name] = _write(tmp_path / f"{side}-{name}", text)
    origins, sources = [], []
    for side, name, _ in places:
        chat_template = load_chat_template(files["adapter"], files["base"], None)
        assert chat_template is not None
        origins.append(chat_template.origin)
        sources.append(chat_template.source)
        del files[side][name]
    assert origins == [
        "chat_template.jinja of the fine-tune",
        "tokenizer_config.json of the fine-tune",
        "chat_template.jinja of the base",
        "tokenizer_config.json of the base",
    ]
    assert sources == [
        "a file of the adapter", "adapter's config", "a file of the base", "base's config",
    ]  # fmt: skip
    assert load_chat_template({}, {}, None) is None


def test_the_default_of_several_named_templates_is_used(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    chat_template = load_chat_template(_config(tmp_path, chat_template=named), {}, None)
    assert chat_template is not None
    assert (chat_template.source, chat_template.tool_use) == ("D", "T")
    files = {name: _write(tmp_path / name, name) for name in ("chat_template.jinja", TOOL_USE)}
    chat_template = load_chat_template(files, {}, None)
    assert chat_template is not None
    assert (chat_template.source, chat_template.tool_use) == ("chat_template.jinja", TOOL_USE)


def test_several_named_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    files = _config(tmp_path, chat_template=[{"name": "tool_use", "template": "T"}])
    with pytest.raises(ChatTemplateError, match="tool_use"):
        load_chat_template(files, {}, None)


def test_a_chat_template_of_another_type_is_a_corrupt_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="chat_template"):
        load_chat_template(_config(tmp_path, chat_template=[1]), {}, None)


def test_a_named_file_that_is_not_text_is_a_corrupt_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFileError, match=r"mine\.jinja"):
        load_chat_template({}, {}, path)


def test_tokens_are_the_adapters_if_it_has_a_tokenizer(tmp_path: Path) -> None:
    base = _config(tmp_path / "base", chat_template="x", bos_token="<b>", eos_token="<e>")
    adapter = _config(
        tmp_path / "adapter",
        bos_token={"__type": "AddedToken", "content": "<s>"},
        eos_token=None,
        pad_token="<pad>",
    )
    chat_template = load_chat_template(adapter, base, None)
    assert chat_template is not None
    assert (chat_template.bos_token, chat_template.eos_token) == ("<s>", None)
    assert chat_template.other_tokens == {"pad_token": "<pad>"}
    without = load_chat_template({}, base, None)
    assert without is not None
    assert (without.bos_token, without.eos_token) == ("<b>", "<e>")


def test_a_special_tokens_map_supplies_tokens_that_the_config_omits(tmp_path: Path) -> None:
    files = _config(tmp_path, chat_template="x", eos_token="</s>")
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "old"}
    files["special_tokens_map.json"] = _write(tmp_path / "map.json", json.dumps(tokens))
    chat_template = load_chat_template(files, {}, None)
    assert chat_template is not None
    assert (chat_template.bos_token, chat_template.eos_token) == ("<s>", "</s>")


def test_a_chat_template_that_does_not_end_is_refused() -> None:
    loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    chat_template = ChatTemplate(loops, "chat_template.jinja", None, None)
    with pytest.raises(ChatTemplateError, match="1,000,000"):
        chat_template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)


def _expected_prompt(source: str, conversation: Conversation) -> str | None:
    thinking = {} if conversation.thinking is None else {"enable_thinking": conversation.thinking}
    try:
        text = _tokenizer().apply_chat_template(
            list(conversation.messages),
            tools=list(conversation.tools) or None,
            chat_template=source,
            tokenize=False,
            add_generation_prompt=not conversation.is_begun,
            continue_final_message=conversation.is_begun,
            **thinking,
        )
    except Exception:
        return None
    return str(text)


def _apply_chat_template(source: str, messages: Any, opens: bool) -> str | None:
    try:
        text = _tokenizer().apply_chat_template(
            list(messages), chat_template=source, tokenize=False, add_generation_prompt=opens
        )
    except Exception:
        return None
    return str(text)


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _config(folder: Path, **values: object) -> dict[str, ModelFile]:
    name = "tokenizer_config.json"
    return {name: _write(folder / name, json.dumps(values))}


def _write(path: Path, text: str) -> ModelFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return ModelFile(path)
