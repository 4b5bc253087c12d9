"""PEFT's methods by name: those that can be merged, and what to do about the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packager.errors import MERGE_WITH_PEFT

_TRAIN_LORA = "Train a LoRA on the same data instead: its change can be merged into the weights."

# The `peft_type` of each method that ftpack merges, and its usual name.
MERGEABLE: dict[str, str] = {
    "ADALORA": "AdaLoRA", "ADAMSS": "AdaMSS", "BEFT": "BEFT", "BOFT": "BOFT", "C3A": "C3A",
    "DEFT": "DEFT", "DELORA": "DeLoRA", "FOURIERFT": "FourierFT", "FROD": "FRoD",
    "GLORA": "GLoRA", "GRALORA": "GraLoRA", "HIRA": "HiRA", "HRA": "HRA", "IA3": "IA3",
    "LN_TUNING": "LN-tuning", "LOHA": "LoHa", "LOKR": "LoKr", "LORA": "LoRA", "MISS": "MiSS",
    "OFT": "OFT", "OSF": "OSF", "PEANUT": "PEANuT", "PSOFT": "PSOFT", "PVERA": "PVeRA",
    "RANDLORA": "RandLoRA", "ROAD": "RoAd", "SHIRA": "SHiRA", "SUPERTUNING": "SuperTuning",
    "TINYLORA": "TinyLoRA", "TRAINABLE_TOKENS": "trainable tokens", "UNILORA": "Uni-LoRA",
    "VBLORA": "VB-LoRA", "VERA": "VeRA", "WAVEFT": "WaveFT",
}  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be merged.

    Attributes:
        what: the setting and its value, or the method.
        why: the reason, to follow "which".
        next_step: what to do instead.
    """

    what: str
    why: str
    next_step: str


_VIRTUAL = "adds trained vectors to the prompt and changes no weight"
_REFUSED: dict[str, tuple[str, str, str]] = {
    "PROMPT_TUNING": ("prompt tuning", _VIRTUAL, _TRAIN_LORA),
    "MULTITASK_PROMPT_TUNING": ("multitask prompt tuning", _VIRTUAL, _TRAIN_LORA),
    "P_TUNING": ("P-tuning", _VIRTUAL, _TRAIN_LORA),
    "PREFIX_TUNING": ("prefix tuning", _VIRTUAL, _TRAIN_LORA),
    "CPT": ("CPT", _VIRTUAL, _TRAIN_LORA),
    "CARTRIDGE": ("Cartridge", "stores a trained cache and changes no weight", _TRAIN_LORA),
    "ADAPTION_PROMPT": (
        "adaption prompt (LLaMA-Adapter)", "adds attention to trained vectors", _TRAIN_LORA,
    ),
    "XLORA": (
        "X-LoRA", "mixes its LoRAs differently for every token",
        "Package one of its LoRAs: each has a folder with its own adapter_config.json.",
    ),
    "POLY": ("Poly", "mixes its LoRAs by the task, which is part of the input", _TRAIN_LORA),
    "LILY": ("Lily", "chooses among its experts by the input", _TRAIN_LORA),
    "SHADOW": ("Shadow", "runs a second small model beside the base", _TRAIN_LORA),
    "BONE": (
        "Bone", "PEFT now has as MiSS, in another format",
        "Convert it with scripts/convert-bone-to-miss.py of PEFT's sources.",
    ),
}  # fmt: skip

# Initialisations that do not change the base, so that the file has the whole change; and those that
# PEFT computes again from the base, with the same result.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal")
_REPEATED_INITS = {"pissa": "PiSSA", "olora": "OLoRA", "mica": "MiCA"}
_CONVERT = (
    "Convert it to a plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
    " in the training environment."
)


def find_refusal(config: Mapping[str, object]) -> Refusal | None:
    """The first thing in an `adapter_config.json` that cannot be merged, if there is one."""
    method = str(config.get("peft_type"))
    if method in _REFUSED:
        name, why, next_step = _REFUSED[method]
        return Refusal(f"`peft_type` {method!r} ({name})", why, next_step)
    if method not in MERGEABLE:
        return Refusal(
            f"`peft_type` {method!r}", "is not a method that ftpack knows", MERGE_WITH_PEFT
        )
    task = config.get("task_type")
    if task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"):
        return Refusal(
            f"`task_type` {task!r}", "trains a classifier; a GGUF generates text",
            "Package an adapter that was trained as CAUSAL_LM.",
        )  # fmt: skip
    if method == "FROD" and not config.get("save_projection", True):
        return Refusal(
            "`save_projection` false", "makes FRoD factor all of the base's weights at once",
            "Load it with PEFT where it was trained, set peft_config['default'].save_projection = "
            "True, and save it again.",
        )  # fmt: skip
    return _refused_lora(config) if method == "LORA" else None


def _refused_lora(config: Mapping[str, object]) -> Refusal | None:
    settings = {
        "use_qalora": "adds its change to pooled inputs", "alora_invocation_tokens":
        "is active only after its invocation tokens (aLoRA)", "arrow_config":
        "routes every token to one of several LoRAs (Arrow)", "layer_replication":
        "repeats layers, so that the base is another model",
        "megatron_config": "belongs to Megatron's parallel layers",
    }  # fmt: skip
    for name, why in settings.items():
        if config.get(name):
            next_step = _TRAIN_LORA if name != "layer_replication" else MERGE_WITH_PEFT
            return Refusal(f"`{name}`", why, next_step)
    return _refused_init(config.get("init_lora_weights", True))


def _refused_init(init: object) -> Refusal | None:
    known = (*_PLAIN_INITS, *_REPEATED_INITS)
    if not isinstance(init, str) or init.lower() in known:
        return None
    what = f"`init_lora_weights` {init!r}"
    if init.startswith("pissa_niter_"):
        return Refusal(what, "uses random numbers, so that each load differs", _CONVERT)
    if init.startswith("corda"):
        return Refusal(what, "needs the training's covariances, which no file holds", _CONVERT)
    if init == "lora_ga":
        # PEFT loads it onto the original base, so that its merge is not the trained model.
        return Refusal(
            what, "changed the base's weights in training, which no file records", _CONVERT
        )
    if init == "loftq":
        return Refusal(
            what, "quantizes the base again on every load, which PEFT does only on a GPU",
            "Set `init_lora_weights` to true in adapter_config.json, and name the base that LoftQ "
            "saved with --base PATH. Or merge it with PEFT on a GPU (merge_and_unload, "
            "save_pretrained) and package the merged folder.",
        )  # fmt: skip
    return Refusal(what, "is not an initialisation that ftpack knows", MERGE_WITH_PEFT)


def method_name(config: Mapping[str, object]) -> str:
    """The usual name of the method in an `adapter_config.json` that is not refused."""
    name = MERGEABLE[str(config.get("peft_type"))]
    if name != "LoRA":
        return name
    init = str(config.get("init_lora_weights")).lower()
    variants = {
        "use_dora": "DoRA", "kasa_config": "KaSA", "velora_config": "VeLoRA",
        "monteclora_config": "MonteCLoRA", "use_bdlora": "BD-LoRA",
    }  # fmt: skip
    for key, variant in variants.items():
        if config.get(key):
            return variant
    if init in _REPEATED_INITS:
        return _REPEATED_INITS[init]
    return "rsLoRA" if config.get("use_rslora") else name
