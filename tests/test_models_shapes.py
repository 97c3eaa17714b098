"""The benchmarks' models have the true architecture and lie on the right devices, however many devices there are."""

import pytest
import torch
from family_setup import Setup

from jobs.benchmark import shapes
from jobs.benchmark.shapes import SHAPES, build_shape
from sttm.models.language_model import LanguageModel

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision"])
@pytest.mark.parametrize("devices", [(CPU,), (CPU, META)])
def test_a_shape_is_the_model_of_its_config(
    name: str, devices: tuple[torch.device, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, buffers and layer numbers equal those of transformers, and random weights have the same spread."""
    setup = Setup.of(name)
    monkeypatch.setitem(shapes.SHAPES, "small", lambda: (setup.family.config, setup.family.processor))
    model, _ = build_shape("small", devices, torch.float32)
    expected = setup.full
    assert [type(module) for module in model.modules()] == [type(module) for module in expected.modules()]
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in expected.named_parameters()]
    for (buffer, ours), theirs in zip(model.named_buffers(), expected.buffers(), strict=True):
        assert torch.equal(ours, theirs), buffer
    assert [layer.self_attn.layer_idx for layer in model.model.language_model.layers] == [0, 1, 2, 3]
    assert model.model.language_model.config.to_dict() == expected.model.language_model.config.to_dict()
    placed = LanguageModel.of(model)
    assert {placed.layer_devices[0], placed.layer_devices[-1]} == set(devices)
    for layer in model.model.language_model.layers:
        weight = layer.mlp.up_proj.weight
        assert weight.is_meta or 0.01 < float(weight.std()) < 0.03
        assert weight.is_meta or torch.all(layer.input_layernorm.weight == 1)


def test_72b_layers_fill_two_gpus_evenly() -> None:
    model, _ = build_shape("llava-video-72b", (META, torch.device("meta", 0)))
    size = sum(p.nbytes for p in model.parameters())
    assert round(size / 1e9) == 146
    assert len(model.model.language_model.layers) == 80
    assert sorted(SHAPES) == ["llava-video-72b", "llava-video-7b", "qwen2-vl-72b", "qwen2-vl-7b"]


def test_72b_layers_in_fp8_fit_one_gpu() -> None:
    model, _ = build_shape("llava-video-72b", META, is_fp8=True)
    assert round(sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 1e9) == 76
    assert model.model.language_model.layers[79].mlp.down_proj.weight.dtype == torch.float8_e4m3fn
