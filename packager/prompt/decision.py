"""Who will render the prompts: the GGUF's own chat template, or an Ollama template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from packager.errors import ChatTemplateError
from packager.model.tokenizer import Vocabulary
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import CORE, turns
from packager.prompt.go.families import OllamaTemplate, find_ollama_template
from packager.prompt.native import PADDING, NativeTemplate, make_native
from packager.prompt.ollama_version import NEWEST_KNOWN, OllamaVersion
from packager.prompt.prompt_options import Renderer
from packager.prompt.server import claims_thinking, claims_tools

# An answer that no chat template writes by itself, to find what follows it.
_ANSWER = "4f1c-answer-9d27"


@dataclass(frozen=True)
class PromptDecision:
    """Who renders, with what, and what ends an answer.

    Attributes:
        renderer: `TEMPLATE` for the Ollama template, `native` for the GGUF's own chat template.
        family: the family of the Ollama template.
        ollama_template: the TEMPLATE (Go); None for none.
        gguf_chat_template: the GGUF's chat template (Jinja): training's, padded and pinned.
        stops: the texts that end an answer; the end of a turn first.
        reason: the decision and why, in one sentence for the user.
        begins_with_bos: whether training prompts begin with the BOS token. Then the GGUF must add
            it: no Ollama template does, and the daemon removes it from a native prompt.
        gguf_tool_use_template: the GGUF's chat template for conversations with tools, if training
            had a separate one.
        pins: the variables that the GGUF's chat template sets, and their values.
        end_token_ids: every id that ends an answer; the end of a turn first.
    """

    renderer: Literal["native", "TEMPLATE"]
    family: str | None
    ollama_template: str | None
    gguf_chat_template: str
    stops: tuple[str, ...]
    reason: str
    begins_with_bos: bool = False
    gguf_tool_use_template: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict)
    end_token_ids: tuple[int, ...] = ()


def decide(
    chat_template: ChatTemplate,
    vocabulary: Vocabulary,
    *,
    choice: Renderer = "auto",
    ollama_version: OllamaVersion = NEWEST_KNOWN,
) -> PromptDecision:
    """Decide who renders the prompts in Ollama, and what ends an answer.

    The GGUF's own chat template renders if the server supports that and renders the training
    prompts with it; otherwise an Ollama template that renders the training prompts.

    Args:
        chat_template: the training chat template.
        vocabulary: the special tokens and the EOS ids.
        choice: `native` or `go` (an Ollama template) for that renderer or an error.
        ollama_version: the server's version.

    Raises:
        ChatTemplateError: if the chat template does not render what the user says, or the server
            cannot render the training prompts.
    """
    _require_user_text(chat_template)
    native = make_native(chat_template)
    bos_token = chat_template.bos_token
    prompts = [chat_template.prompt_or_none(conversation) for conversation in CORE]
    has_bos = {prompt.startswith(bos_token) for prompt in prompts if prompt and bos_token}
    chosen = _choose_renderer(chat_template, native, choice, ollama_version)
    ollama_template = chosen.ollama_template
    if ollama_template is not None and len(has_bos) == 2:
        raise _refused(
            f"the chat template begins only some prompts with {bos_token}; no TEMPLATE can do that",
            "Use --template native (Ollama 0.30 or newer).",
        )
    end = turn_end(chat_template, vocabulary)
    eos_tokens = [vocabulary.token_of.get(number) for number in vocabulary.eos_token_ids]
    stops = tuple(dict.fromkeys(token for token in (end, *eos_tokens) if token))
    end_id = {token: number for number, token in vocabulary.token_of.items()}.get(end or "")
    tool_use = native.chat_template.tool_use
    return PromptDecision(
        renderer="TEMPLATE" if ollama_template else "native",
        family=ollama_template.family if ollama_template else None,
        ollama_template=ollama_template.source if ollama_template else None,
        gguf_chat_template=native.gguf_chat_template,
        stops=stops,
        reason=chosen.reason,
        # If only some prompts have a BOS, the chat template writes it as text.
        begins_with_bos=has_bos == {True},
        gguf_tool_use_template=PADDING + tool_use if tool_use else None,
        pins=native.pins,
        end_token_ids=_end_token_ids(end_id, vocabulary),
    )


def _require_user_text(chat_template: ChatTemplate) -> None:
    prompt = chat_template.prompt(CORE[0])  # raises, with the reason, if it does not render
    if prompt == chat_template.prompt_or_none(CORE[1]):  # differs only in the user's text
        raise ChatTemplateError(
            f"The chat template ({chat_template.origin}) omits what the user says.",
            next_step="Name the Jinja file that training used with --template FILE.",
        )


def _end_token_ids(end_id: int | None, vocabulary: Vocabulary) -> tuple[int, ...]:
    first = () if end_id is None else (end_id,)
    return tuple(dict.fromkeys((*first, *vocabulary.eos_token_ids)))


@dataclass(frozen=True)
class _Chosen:
    """The Ollama template that will render, or None for the GGUF's own; and why."""

    ollama_template: OllamaTemplate | None
    reason: str


def _choose_renderer(
    chat_template: ChatTemplate, native: NativeTemplate, choice: Renderer, version: OllamaVersion
) -> _Chosen:
    can_be_native = version.can_be_native
    differences = native.differences
    if choice == "native" or (choice == "auto" and can_be_native and not differences):
        if not can_be_native:
            raise _refused(
                f"Ollama {version} renders only with a TEMPLATE",
                "Use --template go, or update Ollama to 0.30 or newer.",
            )
        return _Chosen(None, _native_reason(native, choice))
    abilities = _claimed_abilities(chat_template.source) if can_be_native else ""
    if abilities:
        raise _refused(
            f"Ollama {version} would ignore any TEMPLATE, because the chat template takes "
            f"{abilities}"
            + (f", and would render {differences[0]} differently" if differences else ""),
            "Use --template native, or name an older server with --ollama-version.",
        )
    ollama_template = find_ollama_template(chat_template)
    if ollama_template is None:
        raise _refused(
            f"no TEMPLATE renders the training prompts, and Ollama {version} "
            + ("renders some natively in another way" if can_be_native else "needs a TEMPLATE"),
            "Use --template native for the GGUF's own chat template (Ollama 0.30 or newer).",
        )
    return _Chosen(ollama_template, _template_reason(chat_template, ollama_template))


def _native_reason(native: NativeTemplate, choice: Renderer) -> str:
    reason = "the GGUF's own chat template renders"
    if choice == "native":
        reason += ", as requested"
    if native.pins:
        pins = " and ".join(f"{name} = {value}" for name, value in native.pins.items())
        reason += f", with {pins} as in training"
    for note in native.notes:
        reason += f"; {note}"
    if native.differences:
        reason += f"; the server renders {', '.join(native.differences)} differently"
    return reason


def _template_reason(chat_template: ChatTemplate, ollama_template: OllamaTemplate) -> str:
    comparison, family = ollama_template.comparison, ollama_template.family
    kind = f"of the {family} family" if family else "derived from the chat template"
    reason = f"a TEMPLATE {kind} renders, equal in {comparison.count('equal')} conversations"
    if unsupported := comparison.count("unsupported"):
        reason += f" (the chat template refuses {unsupported} more)"
    if known := comparison.count("known_difference"):
        reason += f"; {known} differ: {' and '.join(comparison.causes)}"
    if "strftime_now" in chat_template.source:
        reason += "; a date in it remains today's"
    return reason


def _refused(why: str, next_step: str) -> ChatTemplateError:
    return ChatTemplateError(
        f"The training prompt cannot be reproduced: {why}.", next_step=next_step
    )


def _claimed_abilities(source: str) -> str:
    """The abilities for which Ollama ignores a TEMPLATE (`shouldPreferChatTemplate`)."""
    claims = (("tools", claims_tools(source)), ("thinking", claims_thinking(source)))
    return " and ".join(name for name, is_claimed in claims if is_claimed)


def turn_end(chat_template: ChatTemplate, vocabulary: Vocabulary) -> str | None:
    """The marker that follows an assistant's answer: an added token, or else the rest of its line.

    It must follow both at the end of a conversation and before another turn; otherwise it is the
    beginning of the next turn, and the result is None.
    """
    after = _after_answer(chat_template, "Hello.", _ANSWER)
    if not after:
        return None
    added = sorted(vocabulary.token_of.values(), key=len, reverse=True)
    token = next((token for token in added if after.startswith(token)), None)
    marker = token or after.split("\n")[0].rstrip()
    in_the_middle = _after_answer(chat_template, "Hello.", _ANSWER, "Bye.")
    return marker if in_the_middle is None or in_the_middle.startswith(marker) else None


def _after_answer(chat_template: ChatTemplate, *contents: str) -> str | None:
    """The text after the answer, without leading white space; None if the answer is not in it."""
    try:
        prompt = chat_template.render(turns(*contents), add_generation_prompt=False)
    except ChatTemplateError:
        return None
    _, answer, after = prompt.partition(_ANSWER)
    return after.lstrip() if answer else None
