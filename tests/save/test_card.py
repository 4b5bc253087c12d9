"""The name of the base in a model card is changed, and nothing else."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from packager.save.card import with_base

BASE = "meta-llama/Llama-3.2-1B"


@pytest.mark.parametrize(
    ("recorded", "text", "wanted"),
    [
        ("/home/me/llama", "from /home/me/llama.", f"from {BASE}."),
        ("/home/me/llama/", "`/home/me/llama/`", f"`{BASE}/`"),
        ("/home/me/llama", "(https://huggingface.co//home/me/llama)",
         f"(https://huggingface.co/{BASE})"),
        ("/home/me/llama", "/home/me/llama/config.json", f"{BASE}/config.json"),
        ("./llama", "in ./llama, llama", f"in {BASE}, llama"),
        ("C:\\models\\llama", "C:\\models\\llama\n", f"{BASE}\n"),
        ("out/run 1/llama", "(out/run 1/llama)", f"({BASE})"),
        # Other paths, and words that are not paths.
        ("/home/me/llama", "/home/me/llama.cpp /home/me/llama-2 /mnt/home/me/llama", None),
        ("llama", "A llama of llama-factory", None),
        ("unsloth/llama-bnb-4bit", "trained on unsloth/llama-bnb-4bit", None),
        ("/", "either / or", None),
        ("./", "So. And ./", None),
        ("", "nothing", None),
    ],
)  # fmt: skip
def test_a_path_in_the_text_is_changed_if_it_stands_alone(
    recorded: str, text: str, wanted: str | None
) -> None:
    assert with_base(text, recorded, BASE) == (text if wanted is None else wanted)


@pytest.mark.parametrize(
    "header",
    [
        "base_model: llama\nlicense: llama3.2\n",
        "base_model:\n- llama\n- other/model\n",
        "base_model: 'llama'\n",
        "base_model: >-\n  llama\ntags: [x]\n",
        "base_model: /home/me/another/llama\n",
        "base_model: [llama]\ntags: [llama, 'base_model:adapter:llama', base_model:merge:llama]\n",
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_only_the_name_of_the_base_changes_in_the_header(header: str, newline: str) -> None:
    text = f"---\n{header}---\n# llama\n".replace("\n", newline)
    before = ModelCard(text, ignore_metadata_errors=True).data.to_dict()

    changed = with_base(text, "llama", BASE)

    after = ModelCard(changed).data.to_dict()
    names = after.pop("base_model")
    assert names == [BASE, "other/model"] if "other/model" in header else names in (BASE, [BASE])
    before.pop("base_model")
    tags = {"base_model:adapter:llama": f"base_model:adapter:{BASE}",
            "base_model:merge:llama": f"base_model:merge:{BASE}"}  # fmt: skip
    if "tags" in before:
        before["tags"] = [tags.get(tag, tag) for tag in before["tags"]]
    assert after == before
    assert changed.endswith(f"---{newline}# llama{newline}")


@pytest.mark.parametrize(
    "text", ["", "# llama\n", "---\n", "---\n{[\n---\n", "---\n- llama\n---\n"]
)
def test_a_card_without_a_readable_header_stays_as_it_is(text: str) -> None:
    assert with_base(text, "llama", BASE) == text


def test_a_name_that_yaml_would_read_as_a_number_is_quoted() -> None:
    changed = with_base("---\nbase_model: llama\n---\n", "llama", "123")

    assert ModelCard(changed).data.base_model == "123"
