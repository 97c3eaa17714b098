"""The settings files that ship: each loads, and its presets are the thresholds that the paper publishes."""

from pathlib import Path

import pytest
import yaml

from jobs.config import JobConfig, attribute_docs, describe, effective
from sttm.config import load_config
from sttm.engine.context import QUESTION_TOKENS
from sttm.errors import ConfigError

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
PRESETS = [(path, name) for path in FILES for name in yaml.safe_load(path.read_text()).get("presets", {})]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_settings_load_and_default_to_a_budget(path: Path) -> None:
    config = load_config(JobConfig, path)
    assert config.merge.budget in (0.3, 0.5)
    assert config.merge.spatial_threshold is config.merge.temporal_threshold is None


@pytest.mark.parametrize(("path", "name"), PRESETS, ids=lambda value: getattr(value, "stem", value))
def test_preset_takes_published_thresholds_in_place_of_the_budget(path: Path, name: str) -> None:
    merge = load_config(JobConfig, path, [f"preset={name}"]).merge
    assert (merge.variant, merge.budget) == ("reference", None)
    assert merge.spatial_threshold is not None
    assert merge.temporal_threshold is not None
    assert merge.temporal_threshold < merge.spatial_threshold


def test_presets_cover_the_published_table() -> None:
    counts = {path.stem: sum(p == path for p, _ in PRESETS) for path in FILES}
    assert {stem: n for stem, n in counts.items() if n} == {
        "llava_video_7b": 12,
        "llava_onevision_7b": 12,
        "qwen2_vl_7b": 6,
        "llava_video_72b": 1,
    }


def test_other_overrides_come_after_the_preset() -> None:
    path = next(path for path in FILES if path.stem == "qwen2_vl_7b")
    config = load_config(JobConfig, path, ["merge.temporal_threshold=0.1", "preset=video-mme-30", "video.fps=1"])
    assert (config.merge.spatial_threshold, config.merge.temporal_threshold, config.video.fps) == (0.8, 0.1, 1.0)


@pytest.mark.parametrize(("stem", "message"), [("qwen2_vl_7b", "it has vnbench-50"), ("tiny", "it has none")])
def test_unknown_preset_names_the_known_ones(stem: str, message: str) -> None:
    path = next(path for path in FILES if path.stem == stem)
    with pytest.raises(ConfigError, match=f"no preset 'video-mme-10'; {message}"):
        load_config(JobConfig, path, ["preset=video-mme-10"])


def test_every_value_says_where_it_is_from() -> None:
    path = str(Path(__file__).parent.parent / "configs" / "llava_video_7b.yaml")
    rows = {name: (value, source) for name, value, source in effective(path, ["preset=mlvu-30", "video.fps=3"])}
    assert rows["video.fps"] == (3, "--set video.fps=3")
    assert rows["merge.temporal_threshold"] == (0.55, "preset=mlvu-30")
    assert rows["merge.budget"] == (None, "default")
    assert rows["video.max_frames"] == (128, path)
    assert rows["run.crash_tries"] == (3, "default")


@pytest.mark.parametrize("name", ["gpus_per_model", "in_flight", "decode_timeout_s", "crash_tries"])
def test_nothing_of_what_a_run_needs_some_of_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"run\.{name}: .*greater than .*got 0"):
        load_config(JobConfig, FILES[0], [f"run.{name}=0"])


def test_a_setting_of_older_files_is_refused_with_what_takes_its_place() -> None:
    with pytest.raises(
        ConfigError, match=r"no setting 'decode_ahead' any more: .* leave it out, and set decode_ahead_bytes"
    ):
        load_config(JobConfig, FILES[0], ["run.decode_ahead=8"])


@pytest.mark.parametrize(
    ("stem", "frame", "text", "positions"),
    [
        ("llava_next_video_7b", 12 * 12, 5, 4096),
        ("llava_onevision_7b", 14 * 14, 15, 32768),
        ("llava_video_7b", 14 * 15, 14, 32768),
        ("llava_video_72b", 14 * 15, 14, 32768),
    ],
)
def test_a_video_of_most_frames_leaves_positions_for_questions(
    stem: str, frame: int, text: int, positions: int
) -> None:
    """Tokens of a frame with its separators and of the text around the video, each with a position of its own."""
    config = load_config(JobConfig, Path(__file__).parent.parent / "configs" / f"{stem}.yaml")
    assert config.video.max_frames * frame + text + QUESTION_TOKENS <= positions


@pytest.mark.parametrize("stem", ["qwen2_vl_7b", "qwen2_5_vl_7b"])
def test_a_video_of_most_frames_has_the_tokens_qwen_allows(stem: str) -> None:
    config = load_config(JobConfig, Path(__file__).parent.parent / "configs" / f"{stem}.yaml")
    assert config.model.frame_pixels is not None
    assert config.model.frame_pixels // 28**2 * config.video.max_frames // 2 == 24_576


def test_every_setting_has_a_meaning() -> None:
    for section in JobConfig.model_fields:
        kind = type(getattr(JobConfig(), section))
        assert attribute_docs(kind).keys() >= kind.model_fields.keys(), section


def test_describe_shows_defaults_values_and_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    describe("merge")
    out = capsys.readouterr().out
    assert "merge.variant" in out
    assert "exact | reference" in out
    assert "share of the tokens that is kept" in out
    with pytest.raises(ConfigError, match="no section 'merg'; the sections are model, video, merge"):
        describe("merg")
