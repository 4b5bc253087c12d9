"""PEFT's methods as test cases, and the page of methods, which is generated from them.

Nothing here imports ftpack: adapters and expected values come from PEFT and transformers alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests.merge.deviations import section
from tests.merge.tiny import KINDS, Kind, targets

# The outcome of a cell of the table, and its text there.
Outcome = Literal["identical", "right", "refused", "impossible", "absent"]
CELLS: dict[Outcome, str] = {
    "identical": "yes",
    "right": "yes, untied",
    "refused": "refused",
    "impossible": "not in PEFT",
    "absent": "-",
}


@dataclass(frozen=True)
class Method:
    """One way to tune a model.

    Attributes:
        title: its usual name; a row of the table of methods.
        config: the name of PEFT's configuration class.
        options: the arguments of that class; a function is called with the kind of model.
            `target_modules` is added.
        tuned: the argument of `targets`: which modules are tuned.
        impossible: by kind (`*` for all), a part of PEFT's error if PEFT cannot make the adapter.
        refused: by kind (`*` for all), a part of ftpack's error if ftpack refuses the adapter.
        right: the kinds on which ftpack's result is the adapter's model, and PEFT's merge is not.
        kinds: the kinds of model that have such a part.
        edit: changes to the saved `adapter_config.json`.
    """

    title: str
    config: str
    options: dict[str, Any] = field(default_factory=dict)
    tuned: str = "linear"
    impossible: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    right: tuple[Kind, ...] = ()
    kinds: tuple[Kind, ...] = tuple(KINDS)
    edit: dict[str, Any] = field(default_factory=dict)

    def outcome(self, kind: Kind) -> Outcome:
        """Returns the expected outcome of this method on a kind of model."""
        if kind not in self.kinds:
            return "absent"
        if kind in self.impossible or "*" in self.impossible:
            return "impossible"
        if kind in self.refused or "*" in self.refused:
            return "refused"
        return "right" if kind in self.right else "identical"

    def error(self, kind: Kind) -> str:
        """Returns a part of the expected error."""
        errors = self.impossible | self.refused
        return errors.get(kind) or errors["*"]


def _lora(title: str, tuned: str = "linear", *, right: bool = False, **options: Any) -> Method:
    kinds: tuple[Kind, ...] = ("tied", "scaled", "conv1d") if right else ()
    return Method(title, "LoraConfig", {"r": 4, "lora_alpha": 8, **options}, tuned, right=kinds)


def _linear_only(title: str, config: str, error: str = "not support", **options: Any) -> Method:
    """Returns a method that PEFT does not support on transformers' Conv1D."""
    return Method(title, config, options, impossible={"conv1d": error})


def _adamss(title: str, **options: Any) -> Method:
    sizes = {"r": 8, "num_subspaces": 3, "subspace_rank": 4}
    return _linear_only(title, "AdamssConfig", "is not supported", **sizes, **options)


def _embedding(kind: Kind) -> str:
    return "wte" if kind == "conv1d" else "embed_tokens"


def _first_linear(kind: Kind) -> str:
    return {"conv1d": "c_attn", "fused": "qkv_proj"}.get(kind, "q_proj")


def _ia3_targets(kind: Kind) -> list[str]:
    by_kind: dict[Kind, list[str]] = {
        "conv1d": ["c_attn", "mlp.c_proj"],
        "fused": ["qkv_proj", "down_proj"],
        "moe": ["k_proj"],
    }
    return by_kind.get(kind, ["k_proj", "v_proj", "down_proj"])


_NO_BIAS = "the base has no bias there"
_WITHOUT_BIASES: dict[str, str] = dict.fromkeys(("tied", "scaled", "fused", "moe", "vlm"), _NO_BIAS)

METHODS: dict[str, Method] = {
    "lora": _lora("LoRA"),
    "rslora": _lora("rsLoRA", use_rslora=True),
    "lora-patterns": _lora(
        "LoRA with `rank_pattern`, `alpha_pattern`",
        rank_pattern=lambda kind: {_first_linear(kind): 2},
        alpha_pattern=lambda kind: {_first_linear(kind): 3},
    ),
    "lora-all-linear": _lora("LoRA on `all-linear`", target_modules="all-linear"),
    "lora-regex": _lora(
        "LoRA on a regular expression", target_modules=r".*\.1\..*(q_proj|qkv_proj|c_attn)"
    ),
    "lora-layers": replace(
        _lora("LoRA with `layers_to_transform`", layers_to_transform=[1]),
        kinds=("tied", "scaled", "biased", "fused", "conv1d", "moe"),
    ),
    "lora-bias-all": _lora("LoRA with `bias` all", bias="all"),
    "lora-bias-only": _lora("LoRA with `bias` lora_only", bias="lora_only"),
    "lora-lora-bias": replace(
        _lora("LoRA with `lora_bias`", tuned="biased", lora_bias=True), refused=_WITHOUT_BIASES
    ),
    "lora-embeddings": _lora("LoRA on embeddings", tuned="embeddings", right=True),
    "lora-head": _lora("LoRA on the output head", tuned="head", right=True),
    "lora-tied": _lora(
        "LoRA on embeddings, `ensure_weight_tying`",
        tuned="embeddings",
        right=True,
        ensure_weight_tying=True,
    ),
    "lora-save-head": _lora("LoRA, head in `modules_to_save`", modules_to_save=["lm_head"]),
    "lora-save-embeddings": _lora(
        "LoRA, embeddings in `modules_to_save`",
        modules_to_save=lambda kind: [_embedding(kind)],
    ),
    "lora-save-both": _lora(
        "LoRA, embeddings and head in `modules_to_save`",
        modules_to_save=lambda kind: [_embedding(kind), "lm_head"],
    ),
    "lora-save-tied": _lora(
        "LoRA, `modules_to_save` and `ensure_weight_tying`",
        modules_to_save=lambda kind: [_embedding(kind)],
        ensure_weight_tying=True,
    ),
    "lora-save-norms": _lora(
        "LoRA, norms in `modules_to_save`", modules_to_save=lambda kind: targets(kind, "norms")
    ),
    "lora-tokens": _lora(
        "LoRA with `trainable_token_indices`",
        trainable_token_indices=lambda kind: {_embedding(kind): [3, 5]},
    ),
    "lora-experts": replace(
        _lora(
            "LoRA on experts (`target_parameters`)",
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
        kinds=("moe",),
    ),
    "lora-one-experts": replace(
        _lora(
            "LoRA on one of the experts' parameters",
            target_parameters=["mlp.experts.down_proj"],
            rank_pattern={"experts.down_proj": 2},
        ),
        kinds=("moe",),
    ),
    "dora": _lora("DoRA", use_dora=True),
    "dora-embeddings": _lora("DoRA on embeddings", tuned="embeddings", use_dora=True, right=True),
    "pissa": _lora("PiSSA as saved", init_lora_weights="pissa"),
    "olora": replace(
        _lora("OLoRA as saved", init_lora_weights="olora"), refused={"conv1d": "12 shapes differ"}
    ),
    "mica": _lora("MiCA", init_lora_weights="mica"),
    "eva": Method("EVA, as saved", "LoraConfig", {"r": 4}, edit={"init_lora_weights": "eva"}),
    "orthogonal": _lora("LoRA with orthogonal init", init_lora_weights="orthogonal"),
    "kasa": replace(
        _lora("KaSA", kasa_config=lambda kind: _build("KasaConfig")),
        impossible={"conv1d": "does not support"},
    ),
    "velora": _lora("VeLoRA", velora_config=lambda kind: _build("VeloraConfig", num_groups=16)),
    "monteclora": _lora("MonteCLoRA", monteclora_config=lambda kind: _build("MontecloraConfig")),
    "bdlora": replace(
        _lora(
            "BD-LoRA",
            use_bdlora=lambda kind: _build(
                "BdLoraConfig",
                target_modules_bd_a=[_first_linear(kind)],
                nblocks=2,
                match_strict=False,
            ),
        ),
        impossible={"conv1d": "in_features"},
    ),
    "adalora": Method("AdaLoRA", "AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10}),
    "adamss": _adamss("AdaMSS"),
    "adamss-dynamic": _adamss("AdaMSS, ranks by a threshold", use_dynamic_rank=True),
    "beft": Method(
        "BEFT",
        "BeftConfig",
        tuned="biased",
        impossible={"conv1d": "not supported"},
        refused=_WITHOUT_BIASES,
    ),
    "boft": _linear_only("BOFT", "BOFTConfig", boft_block_size=4),
    "c3a": _linear_only("C3A", "C3AConfig", block_size=16),
    "deft": Method("DEFT", "DeftConfig", {"r": 4}),
    "delora": _linear_only("DeLoRA", "DeloraConfig", r=4),
    "fourierft": Method("FourierFT", "FourierFTConfig", {"n_frequency": 50}),
    "frod": Method("FRoD", "FrodConfig", {"sparse_rate": 0.05}),
    "glora": _linear_only("GLoRA", "GloraConfig", r=4),
    "gralora": Method("GraLoRA", "GraloraConfig", {"r": 4}),
    "hira": Method("HiRA", "HiraConfig", {"r": 4}),
    "hra": _linear_only("HRA", "HRAConfig", r=4),
    "ia3": Method(
        "IA3",
        "IA3Config",
        {
            "target_modules": _ia3_targets,
            "feedforward_modules": lambda kind: [
                name for name in _ia3_targets(kind) if name in ("down_proj", "mlp.c_proj")
            ],
        },
    ),
    "ln": Method("LN-tuning", "LNTuningConfig", tuned="norms"),
    "loha": _linear_only("LoHa", "LoHaConfig", r=4),
    "lokr": _linear_only("LoKr", "LoKrConfig", r=4),
    "miss": _linear_only("MiSS (Bone)", "MissConfig", r=4),
    "oft": _linear_only("OFT", "OFTConfig", oft_block_size=16),
    "oft-coft": _linear_only(
        "OFT, constrained and shared", "OFTConfig", oft_block_size=16, coft=True, block_share=True
    ),
    # On Conv1D, PEFT changes no module and reports nothing.
    "osf": Method("OSF", "OSFConfig", {"effective_rank": 4}, refused={"conv1d": "tunes no module"}),
    "peanut": _linear_only("PEANuT", "PeanutConfig", r=4),
    "psoft": _linear_only("PSOFT", "PsoftConfig", r=4),
    "pvera": Method("PVeRA", "PveraConfig", {"r": 8}),
    "randlora": Method("RandLoRA", "RandLoraConfig", {"r": 4}),
    "randlora-unsaved": Method(
        "RandLoRA, bases not saved", "RandLoraConfig", {"r": 4, "save_projection": False}
    ),
    "road": _linear_only("RoAd", "RoadConfig", group_size=16),
    "shira": _linear_only("SHiRA", "ShiraConfig", r=4),
    "supertuning": _linear_only("SuperTuning", "SupertuningConfig", sparsity=0.9),
    "supertuning-unsaved": _linear_only(
        "SuperTuning, indices not saved",
        "SupertuningConfig",
        sparsity=0.9,
        save_precomputed_indices=False,
    ),
    "tinylora": Method("TinyLoRA", "TinyLoraConfig", {"r": 2, "u": 16}),
    "tokens": Method(
        "Trainable tokens", "TrainableTokensConfig", {"token_indices": [3, 5]}, "embeddings"
    ),
    "unilora": Method("Uni-LoRA", "UniLoraConfig", {"r": 4}),
    "vblora": Method("VB-LoRA", "VBLoRAConfig", {"r": 4, "num_vectors": 8, "vector_length": 16}),
    "vblora-topk": Method(
        "VB-LoRA, only top-k saved",
        "VBLoRAConfig",
        {"r": 4, "num_vectors": 8, "vector_length": 16, "save_only_topk_weights": True},
    ),
    "vera": Method("VeRA", "VeraConfig", {"r": 8}),
    "vera-unsaved": Method(
        "VeRA, projections not saved", "VeraConfig", {"r": 8, "save_projection": False}
    ),
    "waveft": Method("WaveFT", "WaveFTConfig", {"n_frequency": 50}),
}

# Methods that their configuration rules out: the row's title, the settings, a part of the error.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "prompt": ("Prompt tuning", {"peft_type": "PROMPT_TUNING"}, "prompt tuning"),
    "multitask": (
        "Multitask prompt tuning",
        {"peft_type": "MULTITASK_PROMPT_TUNING"},
        "multitask prompt tuning",
    ),
    "p-tuning": ("P-tuning", {"peft_type": "P_TUNING"}, "P-tuning"),
    "prefix": ("Prefix tuning", {"peft_type": "PREFIX_TUNING"}, "prefix tuning"),
    "cpt": ("CPT", {"peft_type": "CPT"}, "CPT"),
    "cartridge": ("Cartridge", {"peft_type": "CARTRIDGE"}, "Cartridge"),
    "adaption": ("LLaMA-Adapter", {"peft_type": "ADAPTION_PROMPT"}, "LLaMA-Adapter"),
    "xlora": ("X-LoRA", {"peft_type": "XLORA"}, "X-LoRA"),
    "poly": ("Poly", {"peft_type": "POLY"}, "Poly"),
    "lily": ("Lily", {"peft_type": "LILY"}, "Lily"),
    "shadow": ("Shadow", {"peft_type": "SHADOW"}, "Shadow"),
    "frod-unsaved": (
        "FRoD, projections not saved",
        {"peft_type": "FROD", "save_projection": False},
        "all of the base's weights at once",
    ),
    "bone": ("Bone, as older PEFT saved it", {"peft_type": "BONE"}, "MiSS"),
    "alora": ("aLoRA", {"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "arrow": ("Arrow", {"arrow_config": {"top_k": 2}}, "arrow_config"),
    "qalora": ("QALoRA", {"use_qalora": True}, "use_qalora"),
    "replicated": ("LoRA with `layer_replication`", {"layer_replication": [[0, 2]]}, "repeats"),
    "megatron": ("LoRA on Megatron's layers", {"megatron_config": {"a": 1}}, "megatron_config"),
    "corda": ("CorDA as saved", {"init_lora_weights": "corda"}, "covariances"),
    "loftq": ("LoftQ as saved", {"init_lora_weights": "loftq"}, "quantizes the base"),
    "lora-ga": ("LoRA-GA as saved", {"init_lora_weights": "lora_ga"}, "'lora_ga'"),
    "fast-pissa": ("PiSSA by fast SVD, as saved", {"init_lora_weights": "pissa_niter_4"}, "random"),
    "classifier": ("Classifiers", {"task_type": "SEQ_CLS"}, "classifier"),
    "new": ("Any method that ftpack does not know", {"peft_type": "NEW"}, "'NEW'"),
}


def _build(name: str, **options: Any) -> Any:
    import peft

    try:
        return getattr(peft, name)(**options)
    except AttributeError:
        from peft.tuners.lora import config

        return getattr(config, name)(**options)


def document() -> str:
    """Returns the text of `docs/methods.md`."""
    columns = list(KINDS)
    head = ["| method | " + " | ".join(KINDS.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    rows = [
        f"| {method.title} | " + " | ".join(CELLS[method.outcome(kind)] for kind in columns) + " |"
        for method in METHODS.values()
    ]
    refused = [f"| {title} | refused |" for title, _, _ in REFUSED.values()]
    parts = [_INTRODUCTION, *head, *rows, "", _REFUSALS, "| method | |", "|---|---|", *refused]
    parts += ["", section()]
    return "\n".join(parts) + "\n"


_INTRODUCTION = """\
# Methods

This page shows what ftpack does with adapters of each PEFT method on seven kinds of small random
models. `tests/merge/test_methods.py` tests every cell, and the page is generated from its cases
(`python -m tests.merge.methods > docs/methods.md`).

- **yes**: ftpack merges the adapter. Names, shapes, element types and bytes are equal to the result
  of `from_pretrained`, `merge_and_unload` and `save_pretrained`. The GGUF has the tensors, types,
  bytes and key-values that llama.cpp's converter and quantizer make from that result.
- **yes, untied**: input and output embeddings share one weight, and the adapter changes only one
  side, or each side differently. PEFT's merge puts the change into both sides. ftpack writes the
  two sides separately, as the adapter's model has them; the tests compare the logits of both.
- **refused**: ftpack names the method, the reason and what to do, before it reads a weight of the
  base.
- **not in PEFT**: PEFT itself cannot make such an adapter.
- **-**: this kind of model has no such part.

PiSSA, OLoRA, CorDA and LoRA-GA adapters that were converted on saving
(`path_initial_model_for_weight_conversion`) are plain LoRAs. So are LoRAs on a base that LoftQ has
saved, and EVA's. `tests/merge/peft/test_initialisations.py` runs each of these initialisations and
conversions, and AdaLoRA's pruning of ranks, and compares the merges with PEFT's and with the tuned
model's logits.

If they are saved without conversion, PiSSA, OLoRA, MiCA, KaSA, OSF, PSOFT, FRoD and AdaMSS factor
the base's weights when they are loaded. The last bits of these factors depend on the machine and
on the number of threads; PSOFT's signs do as well. ftpack computes what PEFT computes on the same
machine and reports this. AdaMSS clusters the factors with scikit-learn, which must be installed.
"""
_REFUSALS = """\
These are refused on every model, because of their configuration:
"""

if __name__ == "__main__":
    sys.stdout.write(document())
