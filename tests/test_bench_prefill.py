"""The prefill benchmark, run on a small shape: its table, its profile and its last line."""

import json
from typing import Any

import pytest
from family_setup import Setup

from jobs.benchmark import shapes
from jobs.benchmark.prefill import bench_prefill


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
