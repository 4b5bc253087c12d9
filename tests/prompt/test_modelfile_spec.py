"""A Modelfile says what was decided; Ollama's parser reads it back unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packager.errors import ChatTemplateError, CorruptFileError
from packager.model.model_file import ModelFile
from packager.prompt.modelfile_spec import ModelfileSpec, render_modelfile, sampling_parameters
from tests.prompt.examples import FOLDER, REAL, example_modelfile

EMPTY = ModelfileSpec(None, None, ())


@pytest.mark.parametrize("name", list(REAL))
def test_the_examples_are_up_to_date(name: str, llama_cpp_source: Path) -> None:
    """Update them with `python -m tests.prompt.examples`."""
    assert (FOLDER / f"{name}.Modelfile").read_bytes().decode() == example_modelfile(
        name, llama_cpp_source
    )


def test_there_are_no_other_examples() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.Modelfile" for name in REAL}


def test_everything_is_said_once_and_in_order() -> None:
    spec = ModelfileSpec(
        ollama_template="{{ .Prompt }}\n",
        system="Be brief.\n\nAnd kind.",
        stops=("<|end|>", "a b"),
        parameters={"top_k": 40, "temperature": 0.7, "use_mmap": True},
    )
    assert render_modelfile(spec, "m-Q4_K_M.gguf").splitlines()[1:] == [
        "FROM ./m-Q4_K_M.gguf",
        'TEMPLATE """{{ .Prompt }}',
        '"""',
        'SYSTEM """Be brief.',
        "",
        'And kind."""',
        'PARAMETER stop "<|end|>"',
        'PARAMETER stop "a b"',
        "PARAMETER temperature 0.7",
        "PARAMETER top_k 40",
        "PARAMETER use_mmap true",
    ]


def test_an_empty_spec_gives_only_from() -> None:
    text = render_modelfile(EMPTY, "m.gguf")
    assert text.startswith("#")
    assert text.endswith("\nFROM ./m.gguf\n")


def test_an_empty_ollama_template_is_written() -> None:
    assert 'TEMPLATE """"""' in render_modelfile(ModelfileSpec("", None, ()), "m.gguf")


def test_jinja_and_go_syntax_in_a_text_is_plain_text() -> None:
    text = "{{ 1 + 1 }} {% if x %} {# gone? #} {{ .Prompt }}"
    assert f'SYSTEM """{text}"""' in render_modelfile(ModelfileSpec(None, text, ()), "m.gguf")


@pytest.mark.parametrize("system", ['say """x""" now', '"', 'ends """', "  padded \n", "a\\nb"])
def test_quotes_and_white_space_are_unchanged(system: str) -> None:
    spec = ModelfileSpec(None, system, ())
    assert f'SYSTEM """{system}"""\n' in render_modelfile(spec, "m.gguf")


@pytest.mark.parametrize(
    "spec",
    [
        ModelfileSpec('x"""\ny', None, ()),
        ModelfileSpec(None, '"""\t \nx', ()),
        ModelfileSpec(None, 'x"""\r\ny', ()),
        ModelfileSpec(None, None, ('"""\n',)),
    ],
)
def test_a_line_that_would_end_the_text_is_refused(spec: ModelfileSpec) -> None:
    with pytest.raises(ChatTemplateError, match='"""') as caught:
        render_modelfile(spec, "m.gguf")
    assert "API" in caught.value.next_step


@pytest.mark.parametrize(
    ("character", "code"),
    [
        ("\u00a0", "U+00A0"),
        ("\u200b", "U+200B"),
        ("\u200d", "U+200D"),
        ("\ufeff", "U+FEFF"),
        ("\u2028", "U+2028"),
        ("\u00ad", "U+00AD"),
        ("\u0000", "U+0000"),
        ("\u007f", "U+007F"),
    ],
)
def test_characters_that_ollama_deletes_are_refused(character: str, code: str) -> None:
    for spec in (
        ModelfileSpec(f"a{character}b", None, ()),
        ModelfileSpec(None, f"a{character}b", ()),
        ModelfileSpec(None, None, (f"a{character}b",)),
    ):
        with pytest.raises(ChatTemplateError, match=code.replace("+", r"\+")):
            render_modelfile(spec, "m.gguf")


def test_the_refusal_names_what_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="SYSTEM"):
        render_modelfile(ModelfileSpec(None, "\u200b", ()), "m.gguf")
    with pytest.raises(ChatTemplateError, match="GGUF's name"):
        render_modelfile(EMPTY, "m\n.gguf")
    with pytest.raises(ChatTemplateError, match="parameter 'a b'"):
        render_modelfile(ModelfileSpec(None, None, (), {"a b": 1}), "m.gguf")


def test_sampling_is_the_generation_configs(tmp_path: Path) -> None:
    files = _generation_config(
        tmp_path,
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=1.0,
        min_p=0.05,
        repetition_penalty=1.1,
        max_new_tokens=99,
    )
    assert sampling_parameters(files) == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 1.0,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
    }


def test_sampling_is_never_invented(tmp_path: Path) -> None:
    assert sampling_parameters({}) == {}
    assert sampling_parameters(_generation_config(tmp_path, do_sample=True, top_p=None)) == {}


def test_settings_without_effect_are_omitted(tmp_path: Path) -> None:
    files = _generation_config(tmp_path, do_sample=False, temperature=0.6, repetition_penalty=1.2)
    assert sampling_parameters(files) == {"repeat_penalty": 1.2}


@pytest.mark.parametrize("value", ["0.6", True, [1], float("nan")])
def test_a_setting_that_is_not_a_number_is_a_corrupt_file(value: object, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="temperature"):
        sampling_parameters(_generation_config(tmp_path, temperature=value))


@pytest.mark.parametrize("value", [1.5, 10**30, "20", [20]])
def test_a_count_that_is_not_an_integer_is_a_corrupt_file(value: object, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="top_k"):
        sampling_parameters(_generation_config(tmp_path, top_k=value))


def _generation_config(folder: Path, **values: object) -> dict[str, ModelFile]:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(values))
    return {path.name: ModelFile(path)}
