"""LLaMA-Factory's template names, and whether a chat template renders the same format.

LLaMA-Factory trains with templates of its own, and usually saves the base's chat template beside
the adapter. If its template is of another family, the model has never seen the prompts it will get.
"""

from __future__ import annotations

from packager.errors import ChatTemplateError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import turns

_USER, _ANSWER = "4f1c-user-9d27", "4f1c-answer-9d27"

# The text before and after the user's text, and after the answer if that is not the tokenizer's
# EOS, as its `data/template.py` registers them. Default system texts are not compared, because they
# differ among its releases.
_CHATML = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
_LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
)
_GEMMA = ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>")
_PHI = ("<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>")
_GRANITE = (
    "<|start_of_role|>user<|end_of_role|>",
    "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "<|end_of_text|>",
)
_MISTRAL = ("[INST]", "[/INST]", "")
_DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "")  # noqa: RUF001 - DeepSeek's own characters
_TURNS: dict[str, tuple[str, str, str]] = {
    **dict.fromkeys((
        "chatml", "chatml_de", "qwen", "qwen3", "qwen3_nothink", "cpm3", "cpm4", "dbrx",
        "falcon_h1", "intern2", "opencoder", "mimo",
    ), _CHATML),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3n"), _GEMMA),
    **dict.fromkeys(("phi", "phi_small"), _PHI),
    **dict.fromkeys(("granite3", "granite4"), _GRANITE),
    **dict.fromkeys(("ministral", "mistral_small", "ministral3"), _MISTRAL),
    **dict.fromkeys(("deepseek3", "deepseekr1"), _DEEPSEEK),
    "llama2": ("[INST] ", " [/INST]", ""),
    "llama3": _LLAMA3,
    "llama4": ("<|header_start|>user<|header_end|>\n\n",
               "<|eot|><|header_start|>assistant<|header_end|>\n\n", "<|eot|>"),
    "phi4": ("<|im_start|>user<|im_sep|>",
             "<|im_end|><|im_start|>assistant<|im_sep|>", "<|im_end|>"),
    "mistral": ("[INST] ", "[/INST]", ""),
    "alpaca": ("### Instruction:\n", "\n\n### Response:\n", ""),
    "deepseek": ("User: ", "\n\nAssistant:", ""),
    "deepseekcoder": ("### Instruction:\n", "\n### Response:", ""),
    "default": ("Human: ", "\nAssistant:", ""),
    "falcon": ("User: ", "\nFalcon:", ""),
    "vicuna": ("USER: ", " ASSISTANT:", ""),
}  # fmt: skip


def compare_with_name(chat_template: ChatTemplate, name: str) -> str | None:
    """How a chat template differs from LLaMA-Factory's template of that name, in a sentence.

    It compares the markers of a user's turn, of the answer's beginning, and of its end.

    Returns:
        None if they agree, or if the name is not known (`is_known`).
    """
    if name not in _TURNS:
        return None
    before, after, end = _TURNS[name]
    # In a user's turn (`default`), LLaMA-Factory writes the tokenizer's EOS; ignored on both sides.
    eos = chat_template.eos_token if name == "default" else None
    try:
        opened = chat_template.render(turns(_USER), add_generation_prompt=True)
        closed = chat_template.render(turns(_USER, _ANSWER), add_generation_prompt=False)
    except ChatTemplateError:
        return None
    if eos:
        opened = opened.replace(eos, "")
    trained = f"{before}{_USER}{after}"
    # In some templates a space after the marker belongs to the answer, so only markers count.
    if trained.rstrip() not in opened:
        return _sentence(name, trained, opened)
    if end and f"{_ANSWER}{end}" not in closed:
        return _sentence(name, f"{_ANSWER}{end}", closed)
    return None


def is_known(name: str) -> bool:
    """Whether this is the name of a known LLaMA-Factory template."""
    return name in _TURNS


def _sentence(name: str, trained: str, rendered: str) -> str:
    def abridged(text: str) -> str:
        return repr(text.replace(_USER, "...").replace(_ANSWER, "..."))[:160]

    return (
        f"LLaMA-Factory trained with its template {name!r}, which writes {abridged(trained)}; this "
        f"chat template writes {abridged(rendered)}: the model was not trained on these prompts. "
        "Name the Jinja file that training used with --template FILE."
    )
