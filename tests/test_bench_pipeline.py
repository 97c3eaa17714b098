"""The throughput benchmark: its checkpoints load, its videos decode, and its last line reports the run."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from media import CLIPS

from jobs.benchmark.clips import write_clips
from jobs.benchmark.copies import write_copies
from jobs.benchmark.film import FILMS, write_films
from jobs.benchmark.pipeline import _job, bench_pipeline
from jobs.benchmark.random_checkpoint import write_checkpoint
from jobs.benchmark.shapes import SHAPES
from jobs.benchmark.stages import StageRates
from jobs.config import JobConfig
from sttm.config import IndexConfig, index_recipe, load_config
from sttm.corpus.listing import list_corpus
from sttm.errors import SttmError
from sttm.indexer import Indexer, VideoReader
from sttm.merging import MergeConfig
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.store.store import Store
from sttm.video.decode import VideoConfig

TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "vocab_size": 640}


def small(shape: str) -> tuple[Any, Any]:
    """Config and processor of a shape, with smaller sizes."""
    config, processor = SHAPES[shape]()
    vision: dict[str, int] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    vision["intermediate_size"] = 32
    if shape.startswith("qwen2-vl"):
        config.text_config.rope_parameters["mrope_section"] = [4, 6, 6]
        vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}
    for part, sizes in ((config.text_config, TEXT), (config.vision_config, vision)):
        for name, value in sizes.items():
            setattr(part, name, value)
    config.text_config.layer_types = ["full_attention"] * TEXT["num_hidden_layers"]
    return config, processor


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_random_checkpoint_of_every_shape_indexes_a_clip(tmp_path: Path, shape: str) -> None:
    folder = write_checkpoint(partial(small, shape), tmp_path / shape, torch.device("cpu"))
    settings = IndexConfig(
        model=ModelConfig(path=str(folder), dtype="float32"),
        video=VideoConfig(fps=2.0, max_frames=8),
        merge=MergeConfig(budget=0.3),
    )
    store = Store.open(tmp_path / "store", create=True)
    write_clips(tmp_path / "clips", count=1, frames=8)
    indexer = Indexer(settings, index_recipe(settings, Checkpoint.open(settings.model)), str(tmp_path / "store"), "run")
    (ref,) = list_corpus(str(tmp_path / "clips"))
    row = indexer.index(VideoReader(settings).read(ref))
    assert row.tokens_after == int(0.3 * row.tokens_before)
    assert store.load_kv(row.identity).keys[-1].shape[0] == 1


def test_clips_are_sampled_whole_and_no_two_are_the_same_content(tmp_path: Path) -> None:
    write_copies(tmp_path / "clips", write_clips(tmp_path / "scenes", count=2, frames=16), 5)
    reader = VideoReader(IndexConfig(video=VideoConfig(fps=2.0, max_frames=16)))
    found = [reader.read(ref) for ref in list_corpus(str(tmp_path / "clips"))]
    assert len({decoded.content_digest for decoded in found}) == 5
    assert [len(decoded.inputs.seconds) for decoded in found] == [16] * 5
    assert not any(decoded.sampling.warnings for decoded in found)


def run(*options: str) -> list[dict[str, Any]]:
    """The lines of JSON that the benchmark prints."""
    command = [sys.executable, "-m", "jobs.bench", "pipeline", "--set", "video.max_frames=8", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_last_line_reports_stages_and_steady_state() -> None:
    (report,) = run("--seconds", "8")
    stages, (row,) = report["stages"], report["rows"]
    assert (report["config"], report["frames"], row["gpus"], row["efficiency"]) == ("tiny", 8, 0, 1)
    assert (report["videos"], stages["gpu_decode"]) == ("clips", 0)
    assert row["videos_per_s"] == pytest.approx(row["steady_videos"] / row["steady_s"], rel=1e-3)
    slowest = min(stages["decode"], stages["prefill"], stages["publish"])
    assert row["of_slowest_stage"] == pytest.approx(row["videos_per_s"] / slowest, rel=1e-3)
    # The model is the slowest stage and hardly waits. Unlike a ratio of rates, this also holds on a busy machine.
    assert (row["slowest_stage"], slowest) == ("prefill", stages["prefill"])
    assert row["of_gpu_stage"] == row["of_slowest_stage"]
    assert 0 <= row["idle_share"] <= 0.15
    assert report["saving_overhead"] == pytest.approx(stages["prefill_only"] / stages["prefill_and_save"] - 1, abs=1e-3)


@pytest.mark.slow
def test_each_film_and_the_folder_is_a_line(tmp_path: Path) -> None:
    """Films of a real size, and files of four codecs, with a model that costs less than decoding them."""
    write_films({tmp_path / "720p24-h264-6s.mp4": replace(FILMS["720p24-h264"], seconds=6)})
    small = ("--seconds", "2", "--set", "model.frame_pixels=20000")
    reports = run(*small, "--film", "720p24-h264:6", "--folder", str(tmp_path), "--corpus", str(CLIPS))
    assert [report["videos"] for report in reports] == ["720p24-h264-6s.mp4", str(CLIPS)]
    assert reports[0]["what"].startswith("1 x 1.5 MB, such as 6 s of 1280x720 h264 at 24 frames/s, 2.")
    assert reports[1]["what"].startswith("4 x 0.2 MB, such as 12 s of 480x270")
    for report in reports:
        stages, (row,) = report["stages"], report["rows"]
        assert stages["decode_cpu_s"] > 0
        assert stages["prefill_gpu_s"].keys() == {"encode", "prefill", "pack"}
        assert report["cores_per_actor"] == pytest.approx(stages["decode_cpu_s"] * stages["prefill"], abs=0.01)
        assert 0 < row["decode_cpu_s"] <= 1.2 * row["decode_s"]
        assert row["steady_videos"] < row["videos"]
    assert not list(tmp_path.glob("run-*"))


RATES = {"decode_workers": 16, "decode_cpu_s": 5.0, "gpu_decode_cpu_s": 0.4, "prefill_cpu_s": 0.1}
RATES |= {"prefill_gpu_s": {}, "publish_cpu_s": 0.1, "prefill_only": 2.1, "prefill_and_save": 2.0}


def test_the_slowest_stage_depends_on_what_decodes_and_on_the_number_of_actors() -> None:
    by_cpu = StageRates(decode=3.0, gpu_decode=0.0, prefill=2.0, publish=9.0, **RATES)
    assert [min(by_cpu.rates(n), key=lambda stage: by_cpu.rates(n)[stage]) for n in (1, 2)] == ["prefill", "decode"]
    assert (by_cpu.gpu_rate(2), by_cpu.cores_per_actor) == (4.0, 10.0)
    by_both = replace(by_cpu, gpu_decode=1.5)
    assert (by_both.rates(2)["decode"], by_both.gpu_rate(2)) == (6.0, 4.0)
    by_gpu = replace(by_both, decode=0.0)
    assert (by_gpu.rates(2)["decode"], by_gpu.gpu_rate(2), by_gpu.cores_per_actor) == (3.0, 3.0, None)


@pytest.mark.slow
def test_more_gpus_than_there_are_is_an_error_at_once() -> None:
    command = [sys.executable, "-m", "jobs.bench", "pipeline", "--gpus", "99"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "--gpus 99: Ray sees" in done.stderr


def test_what_cannot_be_measured_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(SttmError, match="needs a GPU; give --gpus 1"):
        bench_pipeline(set_=["video.decoder=nvdec"])
    with pytest.raises(SttmError, match="no film is named '8k'"):
        bench_pipeline(film=["8k"])
    with pytest.raises(SttmError, match="gone is no folder of this machine"):
        bench_pipeline(corpus=tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(SttmError, match="no videos in"):
        bench_pipeline(corpus=tmp_path)


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(SttmError, match="no shape is named 'gpt-5'; choose one of qwen2-vl-7b, "):
        bench_pipeline(shape="gpt-5", gpus="0", seconds=1)


def test_a_shape_takes_the_place_of_the_checkpoint_in_any_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "small", partial(small, "qwen2-vl-7b"))
    job = _job("qwen2_vl_7b", ["video.max_frames=8"], "small", tmp_path)
    assert (job.model.path, job.video.max_frames) == (str(tmp_path / "small"), 8)
    assert job.merge == load_config(JobConfig, "qwen2_vl_7b").merge
    assert not job.fidelity.probes
    assert _job("tiny", [], None, tmp_path).model.path == "tiny"
