"""Who will render the prompts: the GGUF's own chat template, or an Ollama TEMPLATE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packager.errors import ChatTemplateError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import conversation
from packager.prompt.families import Family, find_family
from packager.prompt.vocabulary import Vocabulary, load_vocabulary

__all__ = ["PromptDecision", "Vocabulary", "decide", "load_vocabulary", "pad"]

# Ollama's `create` gives a model the TEMPLATE of the known chat template that is nearest to its
# own, if fewer than 100 characters have to be changed. A comment of 100 characters that occur in
# none of them keeps every one of them away, and renders as nothing.
PADDING = "{#" + "~" * 100 + "#}\n"

# An answer that no template would write by itself, to find what comes after it.
_ANSWER = "4f1c-answer-9d27"


@dataclass(frozen=True)
class PromptDecision:
    """Who renders, with what, and where an answer ends.

    Attributes:
        renderer: "TEMPLATE" if the Ollama template is to be in force, "native" if the GGUF's own.
        family: the family of the Ollama template.
        ollama_template: the TEMPLATE (Go), None to have none.
        gguf_chat_template: what goes into the GGUF (Jinja): the one of training, padded.
        stops: the texts that end an answer, what ends a turn first.
        end_of_turn: the token that ends an assistant's turn, if that is one token.
        end_of_turn_id: its id.
        reason: the decision and why, in one sentence for the user.
        begins_with_bos: whether the prompts of training begin with the BOS token. The GGUF has to
            add it then: no Ollama template does, and the daemon takes it off the native prompt.
    """

    renderer: Literal["native", "TEMPLATE"]
    family: str | None
    ollama_template: str | None
    gguf_chat_template: str
    stops: tuple[str, ...]
    end_of_turn: str | None
    reason: str
    end_of_turn_id: int | None = None
    begins_with_bos: bool = False


def decide(
    chat_template: ChatTemplate,
    vocabulary: Vocabulary,
    *,
    mode: Literal["auto", "native"] = "auto",
) -> PromptDecision:
    """Decide who renders the prompts in Ollama, and what ends an answer.

    An Ollama template is taken where it makes the same prompts as the chat template and the
    daemon would not set it aside. Else the GGUF's own template is left in force.

    Args:
        chat_template: the one of training.
        vocabulary: the special tokens and the EOS ids.
        mode: "native" to leave the GGUF's own template in force in any case.

    Raises:
        ChatTemplateError: if the chat template does not render a single user turn.
    """
    eos_tokens = [vocabulary.token_of.get(number) for number in vocabulary.eos_token_ids]
    stops = tuple(dict.fromkeys(token for token in eos_tokens if token))
    prompt = chat_template.render(conversation("Hello."), add_generation_prompt=True)
    bos_token = chat_template.bos_token
    end = _turn_end(chat_template, vocabulary)
    stops = tuple(dict.fromkeys((end, *stops))) if end else stops
    family, reason = _family(chat_template, mode)
    ids = {token: number for number, token in vocabulary.token_of.items()}
    return PromptDecision(
        renderer="TEMPLATE" if family else "native",
        family=family.name if family else None,
        ollama_template=family.ollama_template if family else None,
        gguf_chat_template=pad(chat_template.source),
        stops=stops,
        end_of_turn=end if end in ids else None,
        end_of_turn_id=ids.get(end) if end else None,
        reason=reason,
        begins_with_bos=bool(bos_token) and prompt.startswith(bos_token or ""),
    )


def pad(chat_template_source: str) -> str:
    """The same template behind a comment that keeps Ollama from taking it for one that it knows."""
    return PADDING + chat_template_source


def _family(
    chat_template: ChatTemplate, mode: Literal["auto", "native"]
) -> tuple[Family | None, str]:
    native = "the GGUF's own chat template renders"
    if mode == "native":
        return None, f"{native}, as asked for"
    abilities = _claimed_abilities(chat_template.source)
    if abilities:
        return None, f"{native}: Ollama prefers it to any TEMPLATE, as it takes {abilities}"
    family = find_family(chat_template)
    if family is None:
        return None, f"{native}: no TEMPLATE that ftpack has makes the same prompts"
    reason = (
        f"a TEMPLATE of the {family.name} family renders, "
        f"which made the same prompt of {family.proved} conversations"
    )
    if family.refused:
        reason += f" ({family.refused} more are refused by the chat template)"
    if family.limits:
        reason += f"; it differs for {' and '.join(family.limits)}"
    return family, reason


def _claimed_abilities(source: str) -> str:
    """What makes Ollama set a TEMPLATE without these aside (`shouldPreferChatTemplate`)."""
    claims_tools = "tools" in source or "tool_call" in source
    claims_thinking = "<think>" in source and "</think>" in source
    splits = any(f"content.split({quote}</think>{quote})" in source for quote in "'\"")
    if splits and "reasoning_content" not in source and "<SPECIAL_12>" not in source:
        claims_thinking = True
    return " and ".join(
        name
        for name, is_claimed in (("tools", claims_tools), ("thinking", claims_thinking))
        if is_claimed
    )


def _turn_end(chat_template: ChatTemplate, vocabulary: Vocabulary) -> str | None:
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
        prompt = chat_template.render(conversation(*contents), add_generation_prompt=False)
    except ChatTemplateError:
        return None
    _, answer, after = prompt.partition(_ANSWER)
    return after.lstrip() if answer else None
