"""The bench measures a command with all of its children, and reports its figures."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from bench.figures import compare
from bench.kernels import KernelTime
from bench.machine import Machine
from bench.measure import Cost, fill_cache, forget_cached, measure
from bench.model import SHAPES, Adapter, Shape, make_inputs, parameter_count
from bench.plot import write_plot
from bench.report import format_kernel_times, format_result
from bench.result import Result, Setting, read_result, write_result
from bench.rounds import Measured, Round, differing_names
from bench.routes import Run
from packager.model.tensor_file import SafetensorsFile
from testing.usual_route import Tensor

MIB, GIB = 1 << 20, 1 << 30
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
MACHINE = Machine("Some CPU", 2, 8 * GIB, "Linux-6", "3.12.1", 0.1, {"torch": "2.6"})
SETTING = Setting(
    "small", 312_000_000, "LoRA r=16", ("Q4_K_M", "Q8_0"), 2, False, "kernels", 9, 41.0
)


def cost(wall_s: float, peak_tree_bytes: int = GIB) -> Cost:
    return Cost(wall_s, 2 * wall_s, MIB, peak_tree_bytes, MIB, 5 * MIB, 6 * MIB, 7 * MIB)


def usual_run(merge: float, convert: float, q4: float, q8: float) -> Run:
    steps = {
        "merge": cost(merge, 3 * GIB),
        "convert": cost(convert),
        "quantize Q4_K_M": cost(q4),
        "quantize Q8_0": cost(q8),
    }
    return Run(steps, 4 * GIB)


def ftpack_run(wall_s: float) -> Run:
    return Run({"ftpack gguf": cost(wall_s)}, 0)


def round_of(factor: float) -> Round:
    return Round(
        ftpack_run(8 * factor),
        usual_run(10 * factor, 20 * factor, 30 * factor, 4 * factor),
        {"Q4_K_M": ftpack_run(6 * factor), "Q8_0": ftpack_run(4 * factor)},
    )


# The median is the second.
ROUNDS = (round_of(2), round_of(1), round_of(0.5))
RESULT = Result(MACHINE, SETTING, Measured(ROUNDS, {"Q4_K_M": [], "Q8_0": []}))


def test_a_childs_memory_and_writes_count(tmp_path: Path) -> None:
    target = tmp_path / "written"
    child = (
        "import time; data = memoryview(b'x' * (200 << 20)); "
        f"open({str(target)!r}, 'wb').write(data[: 50 << 20]); time.sleep(0.3)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    cost = measure([sys.executable, "-c", parent], tmp_path / "log")
    assert 200 * MIB <= cost.peak_own_bytes <= cost.peak_tree_bytes < 300 * MIB
    assert 200 * MIB <= cost.peak_rss_bytes < cost.peak_tree_bytes
    assert 50 * MIB <= cost.written_bytes < 51 * MIB
    assert cost.wall_s > 0.3


def test_the_memory_of_parallel_processes_is_added(tmp_path: Path) -> None:
    child = "import time; data = b'x' * (100 << 20); time.sleep(1.5)"
    parent = (
        f"import subprocess, sys; command = [sys.executable, '-c', {child!r}]; "
        "both = [subprocess.Popen(command) for _ in range(2)]; [one.wait() for one in both]"
    )
    cost = measure([sys.executable, "-c", parent], tmp_path / "log")
    assert 100 * MIB <= cost.peak_rss_bytes < 200 * MIB
    assert 200 * MIB <= cost.peak_tree_bytes < 300 * MIB


def test_the_parents_memory_does_not_count(tmp_path: Path) -> None:
    ballast = b"x" * (200 * MIB)
    cost = measure([sys.executable, "-c", "import time; time.sleep(0.2)"], tmp_path / "log")
    assert cost.peak_rss_bytes < len(ballast) / 2


def test_dropping_files_from_the_cache_and_reading_them_does_not_change_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_bytes(b"x" * MIB)
    forget_cached(tmp_path)
    fill_cache(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x" * MIB


def test_the_error_of_a_failed_command_shows_the_end_of_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        measure([sys.executable, "-c", "import sys; sys.exit('out of luck')"], tmp_path / "log")


def test_the_sum_of_two_costs_has_the_larger_peak() -> None:
    total = Cost(1, 2, 30, 9, 3, 4, 5, 6) + Cost(10, 20, 7, 10, 8, 40, 50, 60)
    assert total == Cost(11, 22, 30, 10, 8, 44, 55, 66)


def test_one_quant_on_the_usual_route_costs_merge_convert_and_its_own_quantization() -> None:
    alone, eight, together = compare(ROUNDS, SETTING.quants)
    assert [row.name for row in (alone, eight, together)] == ["Q4_K_M", "Q8_0", "both together"]
    assert alone.usual is not None
    assert (alone.usual["wall_s"].median, alone.ftpack["wall_s"].median) == (60, 6)
    assert alone.ratio("wall_s") == 10
    assert eight.ratio("wall_s") == 34 / 4
    assert together.ratio("wall_s") == 64 / 8


def test_a_spread_is_the_median_the_minimum_and_the_maximum() -> None:
    together = compare(ROUNDS, SETTING.quants)[-1]
    wall = together.ftpack["wall_s"]
    assert (wall.median, wall.min, wall.max) == (8, 4, 16)
    assert together.usual is not None
    assert together.usual["peak_tree_bytes"].median == 3 * GIB


def test_the_table_has_a_row_per_quant_and_one_for_all() -> None:
    lines = format_result(RESULT).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = {row[0]: row[1:] for row in cells if len(row) == 12}
    assert rows["Q4_K_M"][:5] == ["60.0 s", "6.0 s", "10.0 x", "120.0 s / 12.0 s", "10.0 x"]
    assert rows["both together"][:3] == ["64.0 s", "8.0 s", "8.0 x"]
    assert rows["both together"][5:7] == ["3.00 GiB / 1.00 GiB", "3.0 x"]
    steps = {row[0]: row[1:] for row in cells if len(row) == 6}
    assert steps["quantize Q4_K_M"][0] == "30.0 s"


def test_the_report_names_the_machine_and_the_setting() -> None:
    text = format_result(RESULT)
    assert f"Machine: {MACHINE}." in text
    assert "0.31 B weights" in text
    assert "9 of them beforehand took 41.0 s" in text
    assert "Q8_0: every tensor is the same." in text
    assert "usual route 4.00 GiB" in text


def test_the_report_names_a_tensor_that_differs() -> None:
    left = {"a": Tensor((1,), "F32", "1"), "b": Tensor((1,), "F32", "2")}
    assert differing_names(left, left | {"b": Tensor((1,), "F32", "3")}) == ["b"]
    assert differing_names(left, {"a": left["a"]}) == ["b"]
    measured = Measured(ROUNDS, {"Q8_0": ["b"]})
    assert "Q8_0: 1 tensors DIFFER, such as b." in format_result(
        dataclasses.replace(RESULT, measured=measured)
    )


def test_the_report_of_ftpack_alone_has_no_ratio() -> None:
    setting = dataclasses.replace(SETTING, quants=("Q8_0",))
    result = Result(MACHINE, setting, Measured((Round(ftpack_run(3)),), {}))
    (line,) = (line for line in format_result(result).splitlines() if line.startswith("| Q8_0"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:6] == ["Q8_0", "not run", "3.0 s", "-", "6.0 s", "-"]
    assert "merge" not in format_result(result)


def test_the_json_has_every_round_and_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_result(path, RESULT)
    assert read_result(path) == RESULT
    together = json.loads(path.read_text("utf-8"))["comparisons"][-1]
    assert together["usual"]["wall_s"] == {"median": 64, "min": 32, "max": 128}
    assert together["ratio"]["wall_s"] == 8


def test_the_report_has_the_cost_of_ftpack_merge_only_if_it_was_run() -> None:
    merging = [Run({"ftpack merge": cost(wall, 3 * GIB)}, 0) for wall in (3.0, 5.0, 4.0)]
    rounds = tuple(
        dataclasses.replace(round_, merge=run) for round_, run in zip(ROUNDS, merging, strict=True)
    )
    measured = dataclasses.replace(RESULT.measured, rounds=rounds)
    text = format_result(dataclasses.replace(RESULT, measured=measured))
    assert "`ftpack merge`: wall 4.0 s, CPU 8.0 s, peak memory 3.00 GiB," in text
    assert "ftpack merge" not in format_result(RESULT)


def test_the_plot_depends_only_on_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / name for name in ("one.svg", "two.svg")]
    for path in paths:
        write_plot(path, RESULT.comparisons, "a title")
    text = paths[0].read_text("utf-8")
    assert text == paths[1].read_text("utf-8")
    for label in ("a title", "Q4_K_M", "both together", "64.0 s", "8.0 s (8.0 x)", "convert"):
        assert label in text
    assert "<dc:date>" not in text


def test_the_table_of_kernel_times_has_one_row_per_type() -> None:
    times = [
        KernelTime("Q4_0", False, None, 1.5),
        KernelTime("Q4_0", True, 5.0, 25.0),
        KernelTime("Q4_K", False, 10.0, 80.0),
        KernelTime("Q4_K", True, 20.0, 150.0, has_same_bytes=False),
    ]
    text = format_kernel_times(MACHINE, times)
    rows = [[cell.strip() for cell in x.strip("|").split("|")] for x in text.splitlines()]
    assert ["Q4_0", "-", "1.5", "-", "5.0", "25.0", "5.0 x"] in rows
    assert ["Q4_K", "10.0", "80.0", "8.0 x", "20.0", "150.0", "7.5 x"] in rows
    assert "Q4_K with importance: the kernel's bytes are NOT ggml's." in text


def assert_loads(base: Path, adapter: Path, parameters: int, tmp_path: Path) -> None:
    """transformers and PEFT load the base and the adapter, and would have saved the same."""
    import peft
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        base, dtype="auto", output_loading_info=True
    )
    assert not any(loading.values())
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == parameters
    model.save_pretrained(tmp_path / "saved")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((base / name).read_text("utf-8")) == json.loads(
            (tmp_path / "saved" / name).read_text("utf-8")
        )
    tuned = peft.PeftModel.from_pretrained(model, adapter)
    state = peft.get_peft_model_state_dict(tuned)
    weights = load_file(adapter / "adapter_model.safetensors")
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in weights)
    assert all(value.abs().mean() > 0.01 for value in weights.values())


@pytest.mark.slow
def test_the_small_shape_loads_with_transformers_and_peft(
    tmp_path: Path, llama_cpp_source: Path
) -> None:
    base, adapter, parameters = make_inputs(SHAPES["small"], tmp_path, llama_cpp_source)
    assert (base / "model.safetensors").is_file()
    assert_loads(base, adapter, parameters, tmp_path)


def test_an_untied_model_in_shards_loads_with_transformers_and_peft(
    tmp_path: Path, llama_cpp_source: Path
) -> None:
    shape = Shape("llama", "tiny", TINY, is_tied=False)
    base, adapter, parameters = make_inputs(
        shape, tmp_path, llama_cpp_source, shard_bytes=17_000_000
    )
    assert sorted(path.name for path in base.glob("*.safetensors*")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert_loads(base, adapter, parameters, tmp_path)


@pytest.mark.parametrize("method", ["lora", "dora", "loha"])
def test_an_adapter_is_the_one_that_peft_would_save(
    tmp_path: Path, llama_cpp_source: Path, method: str
) -> None:
    adapter = Adapter(method, rank=4)
    assert_loads(
        *make_inputs(Shape("llama", "tiny", TINY), tmp_path, llama_cpp_source, adapter), tmp_path
    )


def test_the_base_stores_experts_one_by_one_and_the_adapter_tunes_them_together(
    tmp_path: Path, llama_cpp_source: Path
) -> None:
    sizes = TINY | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    shape = Shape("qwen3moe", "tiny", sizes, is_tied=False)
    base, adapter, parameters = make_inputs(shape, tmp_path, llama_cpp_source, Adapter(rank=8))
    tensors = SafetensorsFile(base / "model.safetensors").tensors
    # The name in Qwen3-30B-A3B's published checkpoint, and the shape for this width.
    assert tensors["model.layers.1.mlp.experts.3.gate_proj.weight"].shape == (32, 64)
    tuned = SafetensorsFile(adapter / "adapter_model.safetensors").tensors
    stem = "base_model.model.model.layers.1.mlp.experts"
    ranks = [tuned[f"{stem}.{name}.weight"].shape[0] for name in ("lora_A", "base_layer.lora_A")]
    assert sorted(ranks) == [4 * 8, 4 * 2 * 8]
    assert_loads(base, adapter, parameters, tmp_path)


@pytest.mark.parametrize(
    ("name", "billions"), [("0.6b", 0.596), ("1.2b", 1.236), ("3b", 3.213), ("8b", 8.030)]
)
def test_shapes_have_the_sizes_of_the_published_models(name: str, billions: float) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from bench.model import _config

    shape = SHAPES[name]
    vocab_size = {"qwen3": 151936, "llama": 128256}[shape.kind]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(shape, vocab_size))
    assert model.num_parameters() / 1e9 == pytest.approx(billions, abs=0.001)


def test_the_mixtures_weights_can_be_counted_before_the_model_exists() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from bench.model import _config

    shape = SHAPES["moe-3b"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(shape, 151936))
    assert parameter_count(shape) == pytest.approx(model.num_parameters(), rel=0.01)
