"""Where ftpack does something else than PEFT, and the test of each: a part of `docs/methods.md`."""

from __future__ import annotations

from dataclasses import dataclass

_LOST = "test_what_peft_leaves_out_with_a_warning_at_most_is_an_error"


@dataclass(frozen=True)
class Deviation:
    """A failing of PEFT.

    Attributes:
        peft: what PEFT does.
        ftpack: what ftpack does.
        test: the test that shows it, in a file of `tests/merge`: `FILE::FUNCTION`.
    """

    peft: str
    ftpack: str
    test: str


DEVIATIONS = (
    Deviation(
        "A LoRA or DoRA on one side of tied embeddings changes both sides.",
        "Writes both sides, each as the adapter's model has it.",
        "test_methods.py::"
        "test_with_tied_embeddings_the_result_computes_what_the_adapter_model_computes",
    ),
    Deviation(
        "Does not load an adapter whose training resized the vocabulary, unless the base is "
        "resized first.",
        "Takes the size from the adapter.",
        "test_methods.py::test_a_vocabulary_that_training_has_resized_comes_from_the_adapter",
    ),
    Deviation(
        "FRoD: factors the base anew, and puts the file's projections to those factors. Where the "
        "factors' signs are not those of training, the result is another model.",
        "Computes from the file's projections.",
        "test_peft_differs.py::test_frod_is_merged_with_the_projections_that_it_was_trained_with",
    ),
    Deviation(
        "AdaMSS: clusters the base's rows anew. Where the clusters are not those of training, rows "
        "get the change of others.",
        "Refuses clusters of other sizes, and those that were made from other singular vectors.",
        "test_peft_differs.py::test_adamss_whose_clusters_are_others_than_in_training_is_an_error",
    ),
    Deviation(
        "OSF on Conv1D (GPT-2): leaves every module as it is.",
        "Refuses it.",
        "test_peft_differs.py::test_osf_on_conv1d_is_an_error",
    ),
    Deviation(
        "LoRA-GA and PiSSA by fast SVD, as saved: puts the change on a base that is not that of "
        "training. CorDA, as saved: fails.",
        "Refuses them, and names the conversion that PEFT has for them.",
        "peft/test_initialisations.py::test_what_no_file_holds_is_refused_with_the_way_out",
    ),
    Deviation(
        "Leaves out what it does not find by name, or keeps what no tensor is there for at its "
        "start; of two tensors for one place takes one; merges NaN.",
        "Refuses it, with the names.",
        f"test_peft_differs.py::{_LOST}",
    ),
    Deviation(
        "Ignores settings that it does not know, and targets that the base does not have, if it "
        "has one of the others.",
        "Refuses them by name.",
        f"test_peft_differs.py::{_LOST}",
    ),
    Deviation(
        "An adapter that transformers 4 saved for Qwen2.5-VL stays unused.",
        "Renames its tensors as transformers renames the base's.",
        "test_adapter_names.py::test_names_that_peft_does_not_translate_are_read_right_or_refused",
    ),
    Deviation(
        "A LoRA on stacked experts that PEFT before 0.19.1 saved: fails on its shapes; a square "
        "one is merged transposed.",
        "Takes the sides from the dimensions; refuses a square one that nothing tells.",
        "peft/test_experts.py::test_a_square_stack_is_refused_where_its_version_does_not_tell_the_layout",
    ),
    Deviation(
        "A LoRA on stacked experts that Unsloth trained before 2026.9.6: gives ranks of one expert "
        "to another.",
        "Regroups them, by what Unsloth has left in the configuration.",
        "peft/test_experts.py::test_peft_itself_fails_on_the_one_and_scrambles_the_other",
    ),
    Deviation(
        "A LoRA on stacked experts whose `target_modules` name the layers in the stack as well: "
        "doubles the rank, and fails on the shapes.",
        "Merges the stack's LoRA, which is all there is.",
        "peft/test_experts.py::test_experts_that_unsloth_targets_twice_are_merged_once",
    ),
    Deviation(
        "`add_weighted_adapter`: scales everything once more if the first LoRA is an rsLoRA.",
        "Refuses that order.",
        "test_several.py::test_an_rslora_that_leads_is_refused_since_peft_scales_it_twice",
    ),
    Deviation(
        "`add_weighted_adapter`: leaves out the modules that the first LoRA's settings exclude.",
        "Refuses that order.",
        "test_several.py::test_a_layer_that_the_first_adapter_excludes_is_not_lost_silently",
    ),
    Deviation(
        "`add_weighted_adapter` of IA3s: scales the base's weights by the sum of the weights, and "
        "by less where one of the adapters has no vector.",
        "Combines those that tune the same modules, by weights that sum up to 1.",
        "test_several.py::test_ia3s_that_peft_would_scale_wrongly_are_not_combined",
    ),
)


def section() -> str:
    """The part of the page."""
    rows = [
        f"| {item.peft} | {item.ftpack} | `{item.test.partition('::')[0]}` |" for item in DEVIATIONS
    ]
    head = ["| PEFT | ftpack | tests/merge/ |", "|---|---|---|"]
    return "\n".join([_INTRODUCTION, *head, *rows])


_INTRODUCTION = """\
## Where ftpack does something else than PEFT

PEFT's merge is followed byte for byte where it is the model that was trained. Where it is not, as
far as is known (peft 0.21.2), or where PEFT would go on without a part of the adapter:
"""
