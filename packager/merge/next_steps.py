"""Next steps that several errors of merging share."""

NAME_BASE = "Name the base that was fine-tuned with --base PATH_OR_ID."
SAVE_AGAIN = "Save the adapter again with PEFT's save_pretrained."
SAVE_AGAIN_OR_CHECK_BASE = f"{SAVE_AGAIN.removesuffix('.')}, or check --base."
CHECK_BASE_OR_SAVE_AGAIN = "Check --base; or save the adapter again with PEFT's save_pretrained."
MERGE_WITH_PEFT = (
    "Merge it with PEFT (merge_and_unload, save_pretrained) and package the merged folder."
)
REPORT = "This should not happen: please report it, with adapter_config.json."
