"""Opening and loading checkpoints: the language model alone, and errors that say what to do."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, write_checkpoint
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


@pytest.mark.parametrize("place", [None, "text_config"])
def test_quantised_checkpoint_is_refused_by_its_config(broken: Path, place: str | None) -> None:
    raw = json.loads((broken / "config.json").read_text())
    (raw[place] if place else raw)["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (broken / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"quantised .*method 'awq'.*take the unquantised checkpoint"):
        opened(broken).family()


@pytest.mark.parametrize("load", [Checkpoint.load_model, Checkpoint.load_language_model])
def test_quantised_weights_are_refused_where_the_config_is_silent(
    broken: Path, load: Callable[[Checkpoint, str], object]
) -> None:
    """Without their scales they would be read as other numbers, and answers would be wrong without any error."""
    path = broken / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    weights |= {name: weights[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} is stored as F8_E4M3, .*take the unquantised checkpoint"):
        load(opened(broken), "cpu")


@pytest.mark.parametrize(
    ("settings", "is_refused"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, True),
        ({"layer_types": None, "sliding_window": 16}, True),
        ({"layer_types": None, "sliding_window": 16, "use_sliding_window": True}, True),
        ({"layer_types": None, "sliding_window": 16, "use_sliding_window": False}, False),
        ({"layer_types": None, "sliding_window": 4096}, False),
        ({"layer_types": None, "sliding_window": None}, False),
    ],
)
def test_sliding_window_is_refused(settings: dict[str, Any], is_refused: bool) -> None:
    """Also if the config lists no kinds of layers, as Mistral's. A window as long as all positions hides nothing."""
    family = Setup.of("llava_next_video").family
    text = SimpleNamespace(max_position_embeddings=4096, **settings)
    config = SimpleNamespace(model_type="llava_next_video", get_text_config=lambda: text)
    with pytest.raises(ModelError, match="sliding_attention") if is_refused else nullcontext():
        type(family)(config, family.tokenizer)


def test_mistrals_window_is_refused(tmp_path: Path) -> None:
    text = {"model_type": "mistral", "sliding_window": 16}
    folder = write_checkpoint("llava_next_video", tmp_path / "mistral", text_config=text)
    with pytest.raises(ModelError, match="sliding_attention"):
        opened(folder).family()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_folder_is_named(broken: Path, missing: str) -> None:
    (broken / missing).unlink()
    with pytest.raises(ModelError, match="has no"):
        opened(broken)
