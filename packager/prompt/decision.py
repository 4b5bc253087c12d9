"""Who will render the prompts: the GGUF's own chat template, or an Ollama TEMPLATE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from packager.errors import ChatTemplateError
from packager.model.tokenizer import Vocabulary
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import CORE, turns
from packager.prompt.go.families import OllamaTemplate, find_ollama_template
from packager.prompt.native import PADDING, NativeTemplate, make_native, prompt_or_none
from packager.prompt.ollama_version import NEWEST_KNOWN, OllamaVersion
from packager.prompt.prompt_options import Renderer
from packager.prompt.server import claims_thinking, claims_tools

# An answer that no template would write by itself, to find what comes after it.
_ANSWER = "4f1c-answer-9d27"


@dataclass(frozen=True)
class PromptDecision:
    """Who renders, with what, and where an answer ends.

    Attributes:
        renderer: "TEMPLATE" if the Ollama template is to be in force, "native" if the GGUF's own.
        family: the family of the Ollama template.
        ollama_template: the TEMPLATE (Go), None to have none.
        gguf_chat_template: what goes into the GGUF (Jinja): the one of training, padded and pinned.
        stops: the texts that end an answer, what ends a turn first.
        end_of_turn: the token that ends an assistant's turn, if that is one token.
        reason: the decision and why, in one sentence for the user.
        begins_with_bos: whether the prompts of training begin with the BOS token. The GGUF has to
            add it then: no Ollama template does, and the daemon takes it off the native prompt.
        gguf_tool_use_template: the same for conversations with tools, where training had one.
        pins: the variables set in front of the GGUF's own, and their values.
        end_token_ids: every id that ends an answer, the end of a turn first.
    """

    renderer: Literal["native", "TEMPLATE"]
    family: str | None
    ollama_template: str | None
    gguf_chat_template: str
    stops: tuple[str, ...]
    end_of_turn: str | None
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

    The GGUF's own chat template renders where the server can do that and it is rendered as in
    training; else an Ollama template that makes the same prompts.

    Args:
        chat_template: the one of training.
        vocabulary: the special tokens and the EOS ids.
        choice: "native" or "go" (an Ollama template) to have that or nothing.
        ollama_version: the server's.

    Raises:
        ChatTemplateError: if the chat template does not render what a user says, or nothing that
            the server knows makes the same prompts.
    """
    _require_said(chat_template)
    native = make_native(chat_template)
    bos_token = chat_template.bos_token
    prompts = [prompt_or_none(chat_template, conversation) for conversation in CORE]
    begin = {prompt.startswith(bos_token) for prompt in prompts if prompt and bos_token}
    template, reason = _renderer(chat_template, native, choice, ollama_version)
    if template is not None and len(begin) == 2:
        raise _refused(
            f"the chat template begins some prompts only with {bos_token}, which no TEMPLATE can",
            "Use --template native (Ollama 0.30 or newer).",
        )
    end = turn_end(chat_template, vocabulary)
    eos_tokens = [vocabulary.token_of.get(number) for number in vocabulary.eos_token_ids]
    stops = tuple(dict.fromkeys(token for token in (end, *eos_tokens) if token))
    end_id = {token: number for number, token in vocabulary.token_of.items()}.get(end or "")
    tool_use = native.chat_template.tool_use
    return PromptDecision(
        renderer="TEMPLATE" if template else "native",
        family=template.family if template else None,
        ollama_template=template.source if template else None,
        gguf_chat_template=native.gguf_chat_template,
        stops=stops,
        end_of_turn=end if end_id is not None else None,
        reason=reason,
        # Where only some prompts have one, the template's own text has to do.
        begins_with_bos=begin == {True},
        gguf_tool_use_template=PADDING + tool_use if tool_use else None,
        pins=native.pins,
        end_token_ids=_end_token_ids(end_id, vocabulary),
    )


def _require_said(chat_template: ChatTemplate) -> None:
    prompt = chat_template.prompt(CORE[0])  # raises, and says why, where it does not
    if prompt == prompt_or_none(chat_template, CORE[1]):  # which differs in that alone
        raise ChatTemplateError(
            f"The chat template ({chat_template.origin}) leaves out what the user says.",
            next_step="Name the Jinja file of training with --template FILE.",
        )


def _end_token_ids(end_id: int | None, vocabulary: Vocabulary) -> tuple[int, ...]:
    first = () if end_id is None else (end_id,)
    return tuple(dict.fromkeys((*first, *vocabulary.eos_token_ids)))


def _renderer(
    chat_template: ChatTemplate, native: NativeTemplate, choice: Renderer, version: OllamaVersion
) -> tuple[OllamaTemplate | None, str]:
    """The Ollama template that is to render, None for the GGUF's own, and why."""
    can_be_native = version.can_be_native
    if choice == "native" or (choice == "auto" and can_be_native and not native.differing):
        if not can_be_native:
            raise _refused(
                f"Ollama {version} renders with a TEMPLATE only, never with the GGUF's own",
                "Use --template go, or update Ollama to 0.30 or newer.",
            )
        return None, _native_reason(native, choice)
    abilities = _claimed_abilities(chat_template.source) if can_be_native else ""
    if abilities:
        raise _refused(
            f"Ollama {version} would set any TEMPLATE aside, as the chat template takes "
            f"{abilities}"
            + (f", and would render {native.differing[0]} otherwise" if native.differing else ""),
            "Use --template native, or name the older server with --ollama-version.",
        )
    template = find_ollama_template(chat_template)
    if template is None:
        raise _refused(
            f"No TEMPLATE is found that makes the prompts of training, and Ollama {version} "
            + ("renders some otherwise natively" if can_be_native else "renders with nothing else"),
            "Use --template native to have the GGUF's own all the same (Ollama 0.30 or newer).",
        )
    return template, _template_reason(chat_template, template)


def _native_reason(native: NativeTemplate, choice: Renderer) -> str:
    reason = "the GGUF's own chat template renders"
    if choice == "native":
        reason += ", as asked for"
    if native.pins:
        pins = " and ".join(f"{name} = {value}" for name, value in native.pins.items())
        reason += f", with {pins} as in training"
    for note in native.notes:
        reason += f"; {note}"
    if native.differing:
        reason += f"; the server makes another prompt of {', '.join(native.differing)}"
    return reason


def _template_reason(chat_template: ChatTemplate, template: OllamaTemplate) -> str:
    comparison = template.comparison
    kind = f"of the {template.family} family" if template.family else "derived from it"
    reason = f"a TEMPLATE {kind} renders, proved on {comparison.count('equal')} conversations"
    if refused := comparison.count("unsupported"):
        reason += f" ({refused} more are refused by the chat template)"
    if declared := comparison.count("known_difference"):
        reason += f"; {declared} differ: {' and '.join(comparison.causes)}"
    if "strftime_now" in chat_template.source:
        reason += "; a date in it stays that of today"
    return reason


def _refused(why: str, next_step: str) -> ChatTemplateError:
    return ChatTemplateError(f"The prompt of training cannot be had: {why}.", next_step=next_step)


def _claimed_abilities(source: str) -> str:
    """What makes Ollama set a TEMPLATE without these aside (`shouldPreferChatTemplate`)."""
    claims = (("tools", claims_tools(source)), ("thinking", claims_thinking(source)))
    return " and ".join(name for name, is_claimed in claims if is_claimed)


def turn_end(chat_template: ChatTemplate, vocabulary: Vocabulary) -> str | None:
    """The marker that follows an assistant's answer: an added token, else the text of its line.

    It has to follow whether the conversation ends there or goes on: what opens a turn is no end.
    """
    after = _after_answer(chat_template, "Hello.", _ANSWER)
    if not after:
        return None
    added = sorted(vocabulary.token_of.values(), key=len, reverse=True)
    token = next((token for token in added if after.startswith(token)), None)
    marker = token or after.split("\n")[0].rstrip()
    goes_on = _after_answer(chat_template, "Hello.", _ANSWER, "Bye.")
    return marker if goes_on is None or goes_on.startswith(marker) else None


def _after_answer(chat_template: ChatTemplate, *contents: str) -> str | None:
    """What follows the answer, but for white space; None where it is not rendered as it stands."""
    try:
        prompt = chat_template.render(turns(*contents), add_generation_prompt=False)
    except ChatTemplateError:
        return None
    _, answer, after = prompt.partition(_ANSWER)
    return after.lstrip() if answer else None
