"""Combined adapters are what PEFT's `add_weighted_adapter` gives, or they are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import AdapterMismatchError, UnsupportedError, UsageError
from packager.merge.merge_options import Combination
from packager.model.checkpoint import FolderCheckpoint
from tests.merge.compared import differences, merge_folders
from tests.merge.methods import METHODS
from tests.merge.tiny import Kind, load_base, make_adapter, merge_with_peft

RANK_2 = replace(METHODS["lora"], options={"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]})


def combined_by_peft(
    base: Path,
    folders: list[Path],
    method: str,
    weights: list[float],
    out: Path,
    density: float,
    kind: Kind = "biased",
) -> Path:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(load_base(base, kind), folders[0], "a0")
        names = ["a0"]
        for number, folder in enumerate(folders[1:], start=1):
            model.load_adapter(folder, f"a{number}")
            names.append(f"a{number}")
        torch.manual_seed(7)
        how = (method,) if method else ()  # IA3 has one method, and takes no name for it
        density_of = {"density": density} if method else {}
        model.add_weighted_adapter(names, weights, "all", *how, **density_of)
        model.set_adapter("all")
        model.merge_and_unload().save_pretrained(out)
    return out


@pytest.mark.parametrize(
    "method",
    ["linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd",
     "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"],
)  # fmt: skip
def test_the_combined_adapter_is_the_one_that_peft_combines_with_the_same_seed(
    method: str, two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, second = two
    wanted = combined_by_peft(base, [first, second], method, [0.7, -0.4], tmp_path / "peft", 0.5)
    pruned = 0.5 if method.startswith(("ties", "dare", "magnitude")) else None

    combination = Combination.parse(method, [0.7, -0.4], pruned, 7)
    merged = merge_folders(base, first, second, scratch=tmp_path, combination=combination)

    assert differences(merged, FolderCheckpoint(wanted)) == []
    merged.require_all_used()


def test_an_rslora_that_comes_second_is_combined_with_its_own_scale(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = two
    other = make_adapter(base, "biased", METHODS["rslora"], tmp_path / "other")
    wanted = combined_by_peft(base, [first, other], "cat", [1.0, 0.5], tmp_path / "peft", 0.5)

    combination = Combination("cat", (1.0, 0.5))
    merged = merge_folders(base, first, other, scratch=tmp_path, combination=combination)

    assert differences(merged, FolderCheckpoint(wanted)) == []


def test_an_rslora_that_comes_first_is_refused_because_peft_scales_it_twice(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = two
    other = make_adapter(base, "biased", METHODS["rslora"], tmp_path / "other")
    name = "model.layers.0.self_attn.q_proj.weight"
    plain = FolderCheckpoint(base).load(name).float()
    both = [
        FolderCheckpoint(
            combined_by_peft(base, order, "cat", [1.0, 1.0], tmp_path / f"peft-{number}", 0.5)
        ).load(name)
        for number, order in enumerate([[first, other], [other, first]])
    ]
    # The sum of two changes does not depend on their order; PEFT's is sqrt(8) times as large.
    factor = (both[1].float() - plain).norm() / (both[0].float() - plain).norm()
    assert factor == pytest.approx(8**0.5, rel=0.05)

    with pytest.raises(UnsupportedError, match="use_rslora"):
        merge_folders(base, other, first, scratch=tmp_path, combination=Combination("cat"))


def test_a_layer_that_the_first_adapter_excludes_is_an_error(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = two
    narrow = make_adapter(base, "biased", METHODS["lora-layers"], tmp_path / "narrow")
    combination = Combination("linear")
    lost = combined_by_peft(base, [narrow, first], "linear", [1, 1], tmp_path / "peft", 0.5)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(FolderCheckpoint(lost).load(name), FolderCheckpoint(base).load(name))

    with pytest.raises(AdapterMismatchError, match=r"first changes in 3 modules.*layers\.0"):
        merge_folders(base, narrow, first, scratch=tmp_path, combination=combination)
    merge_folders(base, first, narrow, scratch=tmp_path, combination=combination)


def test_a_lora_with_several_ranks_is_combined_correctly_or_refused(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = two
    other = make_adapter(base, "biased", METHODS["lora-patterns"], tmp_path / "other")
    wanted = combined_by_peft(base, [first, other], "cat", [1.0, 1.0], tmp_path / "peft", 0.5)

    merged = merge_folders(base, first, other, scratch=tmp_path, combination=Combination("cat"))

    assert differences(merged, FolderCheckpoint(wanted)) == []
    with pytest.raises(AdapterMismatchError, match="'linear'"):
        merge_folders(base, first, other, scratch=tmp_path, combination=Combination("linear"))


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_loras_of_different_ranks_are_combined_as_peft_combines_them(
    method: str, two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = two
    other = make_adapter(base, "biased", RANK_2, tmp_path / "other")
    wanted = combined_by_peft(base, [first, other], method, [1.0, 1.0], tmp_path / "peft", 0.5)

    merged = merge_folders(base, first, other, scratch=tmp_path, combination=Combination(method))

    assert differences(merged, FolderCheckpoint(wanted)) == []


def test_loras_of_different_ranks_are_refused_where_peft_refuses_them(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = two
    other = make_adapter(base, "biased", RANK_2, tmp_path / "other")

    with pytest.raises(AdapterMismatchError, match="same r value") as caught:
        merge_folders(base, first, other, scratch=tmp_path, combination=Combination("linear"))
    assert "cat" in caught.value.next_step


@pytest.mark.parametrize("name", ["dora", "loha", "lora-save-head", "lora-bias-all", "pissa"])
def test_an_adapter_that_is_more_than_a_plain_lora_is_not_combined(
    name: str, two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = two
    other = make_adapter(base, "biased", METHODS[name], tmp_path / "other")

    with pytest.raises(UnsupportedError, match=r"other is more than a LoRA"):
        merge_folders(base, first, other, scratch=tmp_path, combination=Combination("cat"))


def test_two_combinations_can_share_a_scratch_folder(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, second = two
    name = "model.layers.0.self_attn.q_proj.weight"
    (tmp_path / "scratch").mkdir()
    both = [
        merge_folders(base, first, second, scratch=tmp_path / "scratch", combination=combination)
        for combination in (Combination("linear"), Combination("linear", (0.1, 0.1)))
    ]

    assert not torch.equal(both[0].load(name), both[1].load(name))
    assert len(list((tmp_path / "scratch").iterdir())) == 2


def another_ia3(base: Path, kind: Kind, folder: Path, **options: object) -> Path:
    method = replace(METHODS["ia3"], options=METHODS["ia3"].options | options)
    make_adapter(base, kind, method, folder)
    path = folder / "adapter_model.safetensors"
    random = torch.Generator().manual_seed(5)
    tensors = {
        name: value + 0.1 * torch.randn(value.shape, generator=random)
        for name, value in load_file(path).items()
    }
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize("kind", ["tied", "biased", "conv1d"])
def test_ia3s_are_combined_as_peft_combines_them(
    kind: Kind, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base(kind)
    first = make_adapter(base, kind, METHODS["ia3"], tmp_path / "first")
    second = another_ia3(base, kind, tmp_path / "second")
    weights = [0.7, 0.3]
    wanted = combined_by_peft(base, [first, second], "", weights, tmp_path / "peft", 0, kind)

    combination = Combination("linear", tuple(weights))
    merged = merge_folders(base, first, second, scratch=tmp_path, combination=combination)

    assert differences(merged, FolderCheckpoint(wanted)) == []
    assert differences(merged, FolderCheckpoint(merge_with_peft(
        base, kind, first, tmp_path / "one"))) != []  # fmt: skip
    merged.require_all_used()


def test_ia3s_that_peft_would_scale_wrongly_are_not_combined(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base("biased")
    first = make_adapter(base, "biased", METHODS["ia3"], tmp_path / "first")
    fewer = another_ia3(
        base, "biased", tmp_path / "fewer", target_modules=["k_proj"], feedforward_modules=[]
    )
    halves = Combination("linear", (0.5, 0.5))
    name = "model.layers.0.self_attn.v_proj.weight"
    halved = combined_by_peft(base, [first, fewer], "", [0.5, 0.5], tmp_path / "peft", 0)
    alone = FolderCheckpoint(merge_with_peft(base, "biased", first, tmp_path / "alone"))
    # `fewer` does not tune v_proj: the mean of its model and of `first`'s lies near the base.
    ratio = FolderCheckpoint(halved).load(name).float() / alone.load(name).float()
    assert ratio.nanmedian() == pytest.approx(0.5, rel=0.01)

    with pytest.raises(AdapterMismatchError, match=r"first and .*fewer .*v_proj"):
        merge_folders(base, first, fewer, scratch=tmp_path, combination=halves)
    with pytest.raises(UsageError, match="sum to 2"):
        merge_folders(base, first, first, scratch=tmp_path, combination=Combination("linear"))
    with pytest.raises(UnsupportedError, match=r"--combine cat: .*IA3"):
        merge_folders(base, first, first, scratch=tmp_path, combination=Combination("cat"))


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}], ids=["a saved head"])
def test_an_adapter_that_is_more_than_an_ia3_is_not_combined(
    options: dict[str, object], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base("biased")
    other = another_ia3(base, "biased", tmp_path / "other", **options)

    halves = Combination("linear", (0.5, 0.5))
    with pytest.raises(UnsupportedError, match="other is more than an IA3"):
        merge_folders(base, other, other, scratch=tmp_path, combination=halves)
