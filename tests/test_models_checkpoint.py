"""Opening and loading checkpoints: the language model alone, and errors that say what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import FAMILIES
from family_setup import Setup
from safetensors.torch import load_file, save_file

from sttm.errors import ModelError
from sttm.models.checkpoint import Checkpoint, ModelConfig


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(ModelConfig(path=str(folder), dtype="float32"))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be damaged."""
    return Path(shutil.copytree(Setup.of("qwen2_vl").folder, tmp_path / "broken"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_language_model_alone_equals_the_one_inside(name: str, tied: bool) -> None:
    setup = Setup.of(name, tied=tied) if tied else Setup.of(name)
    alone, inside = setup.checkpoint.load_language_model("cpu"), setup.model
    assert not any("vis" in parameter for parameter, _ in alone.text.named_parameters())
    assert torch.equal(alone.head.weight, inside.head.weight)
    for (ours, weight), (theirs, expected) in zip(
        alone.text.named_parameters(), inside.text.named_parameters(), strict=True
    ):
        assert ours == theirs
        assert torch.equal(weight, expected)
    axes = len(setup.prompt.positions)
    positions = torch.arange(9).expand(3, 1, -1) if axes == 3 else torch.arange(9)[None]
    hidden = torch.zeros(1, 9, 64)
    for weight, expected in zip(
        alone.text.rotary_emb(hidden, positions), inside.text.rotary_emb(hidden, positions), strict=True
    ):
        assert torch.equal(weight, expected)


def test_unknown_model_type_names_the_supported_ones_and_how_to_add_one(broken: Path) -> None:
    raw = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**raw, "model_type": "mplug_owl"}))
    with pytest.raises(ModelError) as caught:
        opened(broken).family_class  # noqa: B018
    for part in ("'mplug_owl'", *FAMILIES, "sttm.models.families.ADAPTERS"):
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_config_that_is_no_mapping_is_named(broken: Path, text: str) -> None:
    (broken / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        opened(broken).family_class  # noqa: B018


def test_missing_weight_is_an_error_not_a_random_one(broken: Path) -> None:
    path = broken / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "visual.merger" in name)
    save_file({key: tensor for key, tensor in weights.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"has no weight '.*visual\.merger"):
        opened(broken).load_model("cpu")


def test_sliding_window_is_refused(tmp_path: Path) -> None:
    setup = Setup.of("qwen2_vl")
    config = type(setup.family.config).from_dict(setup.family.config.to_dict())
    config.text_config.layer_types = ["full_attention", "sliding_attention"] * 2
    with pytest.raises(ModelError, match="sliding_attention"):
        type(setup.family)(config, setup.family.tokenizer)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_folder_is_named(broken: Path, missing: str) -> None:
    (broken / missing).unlink()
    with pytest.raises(ModelError, match="has no"):
        opened(broken)
