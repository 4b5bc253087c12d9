"""What LLaMA-Factory's template names mean, and whether a chat template means the same.

It trains with templates of its own, and as a rule leaves the base's chat template beside the
adapter: a name of another family means that the model never saw the prompts it will get.
"""

from __future__ import annotations

from packager.errors import ChatTemplateError
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import turns

_USER, _ANSWER = "4f1c-user-9d27", "4f1c-answer-9d27"

# What is around the user's text, and after the answer where that is not the tokenizer's EOS; as
# its `data/template.py` registers them. Default system texts differ among its releases: they are
# not compared.
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
    """A sentence on how a chat template differs from LLaMA-Factory's template of that name.

    ComparedPrompt are the marks of a user's turn, of the answer's beginning, and of its end.

    Returns:
        None where they agree, or nothing is known of the name (`is_known`).
    """
    if name not in _TURNS:
        return None
    before, after, end = _TURNS[name]
    # LLaMA-Factory's EOS in a user's turn (`default`) is the tokenizer's: left out on both sides.
    eos = chat_template.eos_token if name == "default" else None
    try:
        opened = chat_template.render(turns(_USER), add_generation_prompt=True)
        closed = chat_template.render(turns(_USER, _ANSWER), add_generation_prompt=False)
    except ChatTemplateError:
        return None
    if eos:
        opened = opened.replace(eos, "")
    trained = f"{before}{_USER}{after}"
    # A space after the answer's mark is the answer's own in some templates: the marks decide.
    if trained.rstrip() not in opened:
        return _sentence(name, trained, opened)
    if end and f"{_ANSWER}{end}" not in closed:
        return _sentence(name, f"{_ANSWER}{end}", closed)
    return None


def is_known(name: str) -> bool:
    """Whether it is known what a template's name means."""
    return name in _TURNS


def _sentence(name: str, trained: str, rendered: str) -> str:
    def shown(text: str) -> str:
        return repr(text.replace(_USER, "...").replace(_ANSWER, "..."))[:160]

    return (
        f"LLaMA-Factory trained with its template {name!r}, which writes {shown(trained)}; this "
        f"chat template writes {shown(rendered)}: the model was not trained on these prompts. "
        "Name the Jinja file of training with --template FILE."
    )
