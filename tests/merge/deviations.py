"""The differences between ftpack and PEFT, each with its test: a part of `docs/methods.md`."""

from __future__ import annotations

from dataclasses import dataclass

_LOST = "test_what_peft_drops_silently_or_with_a_warning_is_an_error"


@dataclass(frozen=True)
class Deviation:
    """A difference between ftpack and PEFT.

    Attributes:
        peft: what PEFT does.
        ftpack: what ftpack does.
        test: the test that shows the difference, in a file of `tests/merge`: `FILE::FUNCTION`.
    """

    peft: str
    ftpack: str
    test: str


DEVIATIONS = (
    Deviation(
        "A LoRA or DoRA on one side of tied embeddings changes both sides.",
        "Writes each side as the adapter's model has it.",
        "test_methods.py::"
        "test_with_tied_embeddings_the_result_computes_what_the_adapters_model_computes",
    ),
    Deviation(
        "An adapter whose training resized the vocabulary does not load, unless the base is "
        "resized first.",
        "Takes the size from the adapter.",
        "test_methods.py::test_a_vocabulary_that_training_resized_comes_from_the_adapter",
    ),
    Deviation(
        "FRoD: factors the base again, and combines the saved projections with the new factors. If "
        "the signs of the factors differ from training, the result is a different model.",
        "Computes the merge from the saved projections.",
        "test_peft_differs.py::test_frod_is_merged_with_the_projections_that_it_was_trained_with",
    ),
    Deviation(
        "AdaMSS: clusters the base's rows again. If the clusters differ from training, rows get "
        "the change of other rows.",
        "Refuses clusters whose sizes differ, and clusters from different singular vectors.",
        "test_peft_differs.py::test_adamss_with_clusters_that_differ_from_training_is_an_error",
    ),
    Deviation(
        "OSF on Conv1D (GPT-2): changes no module.",
        "Refuses the adapter.",
        "test_peft_differs.py::test_osf_on_conv1d_is_an_error",
    ),
    Deviation(
        "LoRA-GA and PiSSA by fast SVD, saved without conversion: adds the change to a base that "
        "is not the training base. CorDA, saved without conversion: fails.",
        "Refuses them, and names PEFT's conversion for them.",
        "peft/test_initialisations.py::test_an_initialisation_that_no_file_holds_is_refused_with_a_next_step",
    ),
    Deviation(
        "Ignores tensors whose names it does not find; keeps the initial values of parameters that "
        "have no tensor; takes one of two tensors for the same parameter; merges NaN.",
        "Refuses the adapter, with the names.",
        f"test_peft_differs.py::{_LOST}",
    ),
    Deviation(
        "Ignores settings that it does not know, and targets that the base does not have if at "
        "least one other target exists.",
        "Refuses them by name.",
        f"test_peft_differs.py::{_LOST}",
    ),
    Deviation(
        "An adapter that transformers 4 saved for Qwen2.5-VL has no effect.",
        "Renames its tensors as transformers renames the base's tensors.",
        "test_adapter_names.py::test_names_that_peft_does_not_translate_are_read_correctly_or_refused",
    ),
    Deviation(
        "A LoRA on stacked experts, saved by PEFT before 0.19.1: fails because of its shapes; "
        "merges a square one transposed.",
        "Finds the orientation from the dimensions; refuses a square one if the recorded version "
        "does not determine it.",
        "peft/test_experts.py::test_a_square_stack_is_refused_if_its_version_leaves_the_layout_ambiguous",
    ),
    Deviation(
        "A LoRA on stacked experts, trained by Unsloth before 2026.9.6: gives ranks of one expert "
        "to another.",
        "Regroups the ranks according to Unsloth's entries in the configuration.",
        "peft/test_experts.py::test_peft_itself_fails_on_its_old_layout_and_scrambles_unsloths",
    ),
    Deviation(
        "A LoRA on stacked experts whose `target_modules` also name the layers in the stack: "
        "doubles the rank, and fails because of the shapes.",
        "Merges the stack's LoRA, which is the only one in the file.",
        "peft/test_experts.py::test_experts_that_unsloth_targets_twice_are_merged_once",
    ),
    Deviation(
        "`add_weighted_adapter`: scales everything a second time if the first LoRA is an rsLoRA.",
        "Refuses that order.",
        "test_combine.py::test_an_rslora_that_comes_first_is_refused_because_peft_scales_it_twice",
    ),
    Deviation(
        "`add_weighted_adapter`: ignores the modules that the first LoRA's settings exclude.",
        "Refuses that order.",
        "test_combine.py::test_a_layer_that_the_first_adapter_excludes_is_an_error",
    ),
    Deviation(
        "`add_weighted_adapter` with IA3s: scales the base's weights by the sum of the adapters' "
        "weights, and by less if one of the adapters has no vector.",
        "Combines IA3s only if they tune the same modules and the weights sum to 1.",
        "test_combine.py::test_ia3s_that_peft_would_scale_wrongly_are_not_combined",
    ),
)


def section() -> str:
    """Returns this part of the page."""
    rows = [
        f"| {item.peft} | {item.ftpack} | `{item.test.partition('::')[0]}` |" for item in DEVIATIONS
    ]
    head = ["| PEFT | ftpack | tests/merge/ |", "|---|---|---|"]
    return "\n".join([_INTRODUCTION, *head, *rows])


_INTRODUCTION = """\
## Where ftpack differs from PEFT

ftpack's merge is equal to PEFT's, byte for byte, if PEFT's merge is the model that was trained.
These are the known cases where it is not (peft 0.21.2), or where PEFT would continue without a part
of the adapter:
"""
