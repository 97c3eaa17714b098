"""Settings from YAML and overrides: right values in, clear errors out; the recipe changes with what it must."""

from pathlib import Path

import pytest
from published import write_published

from sttm.config import IndexConfig, index_recipe, load_config, shipped_settings
from sttm.errors import ConfigError
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.store.key import differences, recipe_digest


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text("merge:\n  budget: 0.5\nvideo:\n  fps: 2.0\n")
    return path


def test_overrides_replace_values_of_the_file(settings_file: Path) -> None:
    config = load_config(IndexConfig, settings_file, ["merge.budget=0.25", "prefill.merge_layer=0"])
    assert (config.merge.budget, config.video.fps, config.prefill.merge_layer) == (0.25, 2.0, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("merge.bugdet=0.3", "^--set merge: .*did you mean 'budget'"),
        ("mreg.budget=0.3", "did you mean 'merge'"),
        ("merge.budget=0", r"^--set merge\.budget: "),
        ("merge.spatial_threshold=1.5", "1.5"),
        ("merge.spatial_threshold=0.8", "not both"),
        ("video.fps=fast", "'fast'"),
        ("nonsense", "section.key=value"),
        ("merge.budget.more=1", "not a section"),
    ],
)
def test_bad_setting_is_one_clear_error(settings_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(IndexConfig, settings_file, [override])


@pytest.mark.parametrize(
    ("text", "override", "said_by"),
    [
        ("merge: {budgt: 0.5}", "merge.budget=0.5", "file"),
        ("modle: {path: a}", "model.path=b", "file"),
        ("{}", "merge.budgt=0.5", "--set"),
        ("{}", "modle.path=b", "--set"),
    ],
)
def test_a_misspelt_setting_is_blamed_on_who_misspelt_it(
    settings_file: Path, text: str, override: str, said_by: str
) -> None:
    settings_file.write_text(text)
    with pytest.raises(ConfigError, match=f"^{settings_file if said_by == 'file' else said_by}"):
        load_config(IndexConfig, settings_file, [override])


def test_each_fault_names_who_said_so(settings_file: Path) -> None:
    settings_file.write_text("merge:\n  budget: 2\nvideo:\n  fps: 2.0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(IndexConfig, settings_file, ["video.fps=-1"])
    of_override, of_file = sorted(str(caught.value).split("; "))
    assert of_override.startswith("--set video.fps: ")
    assert of_file.startswith(f"{settings_file}: merge.budget: ")


@pytest.mark.parametrize("text", ["merge: [", "- a list", "\x00"])
def test_file_that_holds_no_settings_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(IndexConfig, path)
    with pytest.raises(ConfigError, match="missing"):
        load_config(IndexConfig, tmp_path / "missing.yaml")


def test_recipe_changes_with_what_changes_the_bytes(qwen2_vl_folder: Path, settings_file: Path) -> None:
    def recipe(*overrides: str) -> dict:
        config = load_config(IndexConfig, settings_file, [f"model.path={qwen2_vl_folder}", *overrides])
        return index_recipe(config, Checkpoint.open(config.model))

    plain = recipe()
    for override in ("prefill.chunk_tokens=64", "fidelity.tokens=2"):
        assert recipe_digest(recipe(override)) == recipe_digest(plain)
    for override in ("merge.budget=0.4", "video.max_frames=9", "store.kv_scheme=exact", "model.dtype=float32"):
        changed = recipe(override)
        path = override.split("=")[0]
        assert [d.path for d in differences(plain, changed)] == [path]
    (resized,) = differences(plain, recipe("model.frame_pixels=50000"))
    assert (resized.path, resized.right["most"]) == ("preprocess", 50000)


def test_recipe_holds_the_bounds_of_frames_that_the_checkpoint_does_not_say(
    qwen2_vl_folder: Path, tmp_path: Path
) -> None:
    config = IndexConfig(model=ModelConfig(path=str(write_published(qwen2_vl_folder, tmp_path / "published"))))
    bounds = index_recipe(config, Checkpoint.open(config.model))["preprocess"]
    assert bounds == {"least": 100352, "most": 602112, "total": 38535168}


def test_settings_are_found_by_name_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(IndexConfig, "tiny") == load_config(IndexConfig, shipped_settings()["tiny"])
    assert load_config(IndexConfig) == IndexConfig()


def test_unknown_settings_name_lists_those_that_ship() -> None:
    with pytest.raises(ConfigError, match=r"no settings are named 'tniy'; did you mean 'tiny'\? .*qwen2_5_vl_7b"):
        load_config(IndexConfig, "tniy")
    with pytest.raises(ConfigError, match=r"cannot read settings nowhere/my.yaml: .*shipped are .*tiny"):
        load_config(IndexConfig, "nowhere/my.yaml")
