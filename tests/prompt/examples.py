"""Chat templates and vocabularies of well-known formats, and their Modelfiles.

`python -m tests.prompt.examples` writes the Modelfiles of real chat templates into Modelfiles/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packager.gguf.toolchain import find_toolchain
from packager.model.tokenizer import Vocabulary
from packager.prompt.chat_template import ChatTemplate
from packager.prompt.decision import PromptDecision, decide
from packager.prompt.modelfile_spec import ModelfileSpec, render_modelfile
from packager.prompt.ollama_version import NEWEST_KNOWN, OllamaVersion
from packager.prompt.prompt_options import Renderer
from packager.scalar import Scalar

FOLDER = Path(__file__).parents[2] / "Modelfiles"
_OPENER = "{% if add_generation_prompt %}{{ 'OPENER' }}{% endif %}"


def per_turn(turn: str, opener: str, before: str = "") -> str:
    """A chat template that renders each message with one expression, then opens the answer."""
    body = "{% for message in messages %}{{ " + turn + " }}{% endfor %}"
    return before + body + _OPENER.replace("OPENER", opener)


CHATML = per_turn(
    "'<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n'",
    "<|im_start|>assistant\\n",
)
LLAMA3 = per_turn(
    "(bos_token if loop.first else '') + '<|start_header_id|>' + message.role"
    " + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>'",
    "<|start_header_id|>assistant<|end_header_id|>\\n\\n",
)
GEMMA = (
    "{{ bos_token }}{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content + '\\n\\n' if messages[0].content else '' %}{% endif %}"
    "{% for message in messages if message.role != 'system' %}{{ '<start_of_turn>' }}"
    "{{ 'model' if message.role == 'assistant' else message.role }}{{ '\\n' }}"
    "{{ (system if loop.first else '') + message.content | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}"
    "{% elif message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}"
    "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_FIRST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = per_turn(
    "'<|' + message.role + '|>\\n' + message.content + '<|end|>\\n'", "<|assistant|>\\n"
)
PHI4 = per_turn(
    "'<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>'",
    "<|im_start|>assistant<|im_sep|>",
)
# The formats that the models' authors describe; the toolchain has no chat templates for these.
VICUNA = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}"
    "{{ 'A chat between a curious user and an assistant.' }}{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ ' USER: ' + message.content }}{% elif message.role == 'assistant' %}"
    "{{ ' ASSISTANT: ' + message.content + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT: ' }}{% endif %}"
)
ALPACA = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '### Instruction:\\n' + message.content + '\\n\\n' }}"
    "{% elif message.role == 'assistant' %}"
    "{{ '### Response:\\n' + message.content + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
LLAMA4 = per_turn(
    "'<|header_start|>' + message.role + '<|header_end|>\\n\\n' + message.content | trim"
    " + '<|eot|>'",
    "<|header_start|>assistant<|header_end|>\\n\\n",
    "{{ bos_token }}",
)


@dataclass(frozen=True)
class Example:
    """A fine-tune's chat template with its vocabulary.

    Attributes:
        chat_template: as trained.
        vocabulary: its special tokens and EOS ids.
        parameters: the settings of its generation configuration.
    """

    chat_template: ChatTemplate
    vocabulary: Vocabulary
    parameters: dict[str, Scalar]

    def decide(
        self, choice: Renderer = "go", ollama_version: str = str(NEWEST_KNOWN)
    ) -> PromptDecision:
        """The decision; it is for an Ollama template unless `choice` says otherwise."""
        version = OllamaVersion.parse(ollama_version)
        return decide(self.chat_template, self.vocabulary, choice=choice, ollama_version=version)


def make_example(
    source: str, tokens: dict[int, str], eos: list[int], bos: str | None = None, **parameters: float
) -> Example:
    """An example whose tokens are all special."""
    chat_template = ChatTemplate(source, "the example", bos, tokens[eos[0]])
    vocabulary = Vocabulary(tuple(eos), tokens, frozenset(tokens.values()))
    return Example(chat_template, vocabulary, dict(parameters))


EXAMPLES = {
    "chatml": make_example(
        CHATML,
        {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"},
        [151645, 151643],
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repeat_penalty=1.05,
    ),
    "llama3": make_example(
        LLAMA3,
        {128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128006: "<|start_header_id|>",
         128007: "<|end_header_id|>", 128008: "<|eom_id|>", 128009: "<|eot_id|>"},
        [128001, 128008, 128009],
        "<|begin_of_text|>",
        temperature=0.6,
        top_p=0.9,
    ),
    "gemma": make_example(
        GEMMA,
        {1: "<eos>", 2: "<bos>", 105: "<start_of_turn>", 106: "<end_of_turn>"},
        [1, 106],
        "<bos>",
        top_k=64,
        top_p=0.95,
    ),
    "mistral": make_example(
        MISTRAL, {1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]"}, [2], "<s>", num_ctx=8192
    ),
    "phi3": make_example(
        PHI3,
        {1: "<s>", 32000: "<|endoftext|>", 32001: "<|assistant|>", 32007: "<|end|>"},
        [32007, 32001, 32000],
        "<s>",
    ),
}  # fmt: skip


# For Modelfiles/: a real chat template of the toolchain, with the special tokens and the sampling
# settings that its model is published with.
REAL: dict[str, tuple[str, dict[int, str], list[int], str | None, dict[str, float]]] = {
    "chatml": (
        "Qwen-Qwen2.5-7B-Instruct",
        {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"},
        [151645, 151643],
        None,
        {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repeat_penalty": 1.05},
    ),
    "deepseek": (
        "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
        {128000: "<｜begin▁of▁sentence｜>", 128001: "<｜end▁of▁sentence｜>"},
        [128001],
        "<｜begin▁of▁sentence｜>",
        {"temperature": 0.6, "top_p": 0.95},
    ),
    "gemma": (
        "google-gemma-2-2b-it",
        {1: "<eos>", 2: "<bos>", 106: "<start_of_turn>", 107: "<end_of_turn>"},
        [1, 107],
        "<bos>",
        {},
    ),
    "granite": (
        "ibm-granite-granite-4.0",
        {100257: "<|end_of_text|>", 100264: "<|start_of_role|>", 100265: "<|end_of_role|>"},
        [100257],
        None,
        {},
    ),
    "llama3": (
        "meta-llama-Llama-3.1-8B-Instruct",
        {128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128008: "<|eom_id|>",
         128009: "<|eot_id|>"},
        [128001, 128008, 128009],
        "<|begin_of_text|>",
        {"temperature": 0.6, "top_p": 0.9},
    ),
    "mistral": (
        "mistralai-Ministral-3-14B-Reasoning-2512",
        {1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]"},
        [2],
        "<s>",
        {},
    ),
    "phi": (
        "microsoft-Phi-3.5-mini-instruct",
        {1: "<s>", 32000: "<|endoftext|>", 32001: "<|assistant|>", 32007: "<|end|>"},
        [32007, 32001, 32000],
        "<s>",
        {},
    ),
}  # fmt: skip


def example_modelfile(name: str, llama_cpp: Path) -> str:
    """The Modelfile of a real chat template, in a bundle for servers before 0.30."""
    file, tokens, eos, bos, parameters = REAL[name]
    source = (llama_cpp / "models" / "templates" / f"{file}.jinja").read_text(encoding="utf-8")
    decision = make_example(source, tokens, eos, bos).decide("auto", ollama_version="0.24.0")
    spec = ModelfileSpec(decision.ollama_template, None, decision.stops, parameters)
    return render_modelfile(spec, f"{name}-Q5_K_M.gguf")


if __name__ == "__main__":
    for example_name in REAL:
        path = FOLDER / f"{example_name}.Modelfile"
        text = example_modelfile(example_name, find_toolchain().folder)
        path.write_text(text, encoding="utf-8", newline="")
