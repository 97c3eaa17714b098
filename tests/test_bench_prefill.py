"""The prefill benchmark, run on a small shape: its table, its profile and its last line."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from family_setup import Setup

from jobs.benchmark import prefill, shapes
from jobs.benchmark.prefill import bench_prefill
from sttm.errors import ConfigError
from sttm.models.fp8_linear import Fp8Linear
from sttm.models.language_model import LanguageModel


def run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple:
    """Lines printed, and the last one parsed."""
    setup = Setup.of(name)
    monkeypatch.setitem(shapes.SHAPES, "small", lambda: (setup.family.config, setup.family.processor))
    bench_prefill("small", frames=4, budgets="0.5", merge_layers="0,2", repeats=1, **options)
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1])


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision"])
def test_every_setting_is_a_row_that_hits_its_budget(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report = run(name, monkeypatch, capsys, proportional=True)
    settings = [(row["merge_layer"], row["budget"], row["proportional"]) for row in report["rows"]]
    assert settings == [(0, 1.0, False), *((layer, 0.5, counts) for layer in (0, 2) for counts in (False, True))]
    visual = report["grid"][0] * report["grid"][1] * report["grid"][2]
    full, *reduced = [row["tokens"] for row in report["rows"]]
    assert {full - tokens for tokens in reduced} == {visual - visual // 2}
    assert all(row["prefill_s"] > 0 for row in report["rows"])
    assert report["gpus_per_model"] == 1


def test_profile_names_what_takes_the_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines, report = run("llava_onevision", monkeypatch, capsys, profile=True)
    tower, last_row = (next(i for i, line in enumerate(lines) if line.startswith(name)) for name in ("vision", "last"))
    for part in (lines[tower:last_row], lines[last_row:-1]):
        assert any("aten::addmm" in line for line in part)
    assert set(report["vision_s_by_sdpa_kernel"]) == {"FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"}


def test_a_checkpoint_can_be_measured_instead_of_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Setup.of("qwen3_vl").folder
    bench_prefill(model=folder, frames=4, budgets="0.5", merge_layers="0", repeats=1)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["shape"] == folder.name
    assert [row["budget"] for row in report["rows"]] == [1.0, 0.5]


@pytest.mark.parametrize("is_shape", [True, False])
def test_fp8_can_be_measured(
    is_shape: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[Any] = []
    monkeypatch.setattr(prefill, "LanguageModel", SimpleNamespace(of=lambda m: built.append(m) or LanguageModel.of(m)))
    model = None if is_shape else Setup.of("qwen2_vl").folder
    _, report = run("qwen2_vl", monkeypatch, capsys, dtype="fp8", model=model)
    assert report["dtype"] == "fp8"
    inside = [name for name, module in built[0].named_modules() if isinstance(module, Fp8Linear)]
    assert len(inside) == 4 * 7 + 2 * 4
    with pytest.raises(ConfigError, match=r"--dtype 'int8'.*bfloat16, float16, float32, fp8"):
        run("qwen2_vl", monkeypatch, capsys, dtype="int8")
