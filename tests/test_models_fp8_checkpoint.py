"""Published FP8 checkpoints load as the products of their codes and scales, or as the FP8 rows that they hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_setup import Setup
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sttm.errors import ModelError
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.fp8 import FP8, quantise_rows
from sttm.models.fp8_linear import Fp8Linear
from sttm.models.fp8_scheme import Fp8Scheme, read_scheme
from sttm.models.language_model import LanguageModel

_BLOCK = 48  # the small weights have whole blocks and cut ones, as real weights have with blocks of 128
_WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
_TOKENS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}


def compressed_tensors(strategy: str, **settings: Any) -> dict[str, Any]:
    """The `quantization_config` of llm-compressor's FP8 checkpoints."""
    weights = {**_WEIGHTS, "strategy": strategy, **({"block_structure": [48, 48]} if strategy == "block" else {})}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": _TOKENS, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
        "ignore": ["re:.*visual.*", "lm_head"],
        **settings,
    }


CONFIGS = {
    "fp8": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [_BLOCK, _BLOCK],
        "modules_to_not_convert": ["lm_head", "visual"],
    },
    "channel": compressed_tensors("channel"),
    "tensor": compressed_tensors("tensor"),
    "block": compressed_tensors("block"),
}


def is_quantised(name: str) -> bool:
    """Whether a publisher quantises this weight: the language model's linear layers, but here without one of them."""
    return name.endswith("_proj.weight") and "vis" not in name and "layers.1.mlp.up_proj" not in name


def codes_and_scale(kind: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in the stored form: FP8 codes, and a scale in the shape and dtype of the format."""
    if kind == "channel":
        rows = quantise_rows(weight)
        scale = rows.scales.bfloat16()
    elif kind == "tensor":
        scale = (weight.abs().max() / 448).reshape(1)
    else:
        padded = nn.functional.pad(weight, (0, -weight.shape[1] % _BLOCK, 0, -weight.shape[0] % _BLOCK))
        blocks = padded.unflatten(0, (-1, _BLOCK)).unflatten(2, (-1, _BLOCK))
        scale = blocks.abs().amax((1, 3)) / 448
    return (weight / expanded(kind, scale, weight)).to(FP8), scale


def expanded(kind: str, scale: Tensor, weight: Tensor) -> Tensor:
    """The scale of each number, by loops over the blocks."""
    if kind in ("channel", "tensor"):
        return scale.float().expand_as(weight)
    out = torch.empty_like(weight)
    for row in range(0, weight.shape[0], _BLOCK):
        for column in range(0, weight.shape[1], _BLOCK):
            block = scale[row // _BLOCK, column // _BLOCK]
            out[row : row + _BLOCK, column : column + _BLOCK] = block
    return out


def rewrite(folder: Path, source: Path, edit: Callable[[dict[str, Tensor]], None], config: Any) -> Path:
    """A copy of a checkpoint with other weights and another `quantization_config`."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **({"quantization_config": config} if config else {})}))
    return folder


def publish(folder: Path, source: Path, kind: str) -> Path:
    """A checkpoint as it is published in FP8."""
    suffix = "_scale_inv" if kind == "fp8" else "_scale"

    def quantise(weights: dict[str, Tensor]) -> None:
        for name in filter(is_quantised, list(weights)):
            weights[name], weights[name + suffix] = codes_and_scale(kind, weights[name])

    return rewrite(folder, source, quantise, CONFIGS[kind])


def dequantise(folder: Path, source: Path, kind: str) -> Path:
    """The same weights as a plain checkpoint in float32."""

    def round_trip(weights: dict[str, Tensor]) -> None:
        for name in filter(is_quantised, list(weights)):
            codes, scale = codes_and_scale(kind, weights[name])
            weights[name] = codes.float() * expanded(kind, scale, weights[name])

    return rewrite(folder, source, round_trip, None)


def opened(folder: Path, dtype: str) -> Checkpoint:
    return Checkpoint.open(ModelConfig(path=str(folder), dtype=dtype))


def same(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
        assert torch.equal(tensor.float(), expected[name].float()), name


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "float32") for kind in CONFIGS), ("fp8", "bfloat16")])
def test_without_fp8_the_weights_are_products_of_codes_and_scales(tmp_path: Path, kind: str, dtype: str) -> None:
    source = Setup.of("qwen3_vl").folder
    ours = opened(publish(tmp_path / "fp8", source, kind), dtype)
    theirs = opened(dequantise(tmp_path / "plain", source, kind), dtype)
    same(ours.load_model("cpu"), theirs.load_model("cpu"))
    same(ours.load_language_model("cpu").text, theirs.load_language_model("cpu").text)


@pytest.mark.parametrize("kind", CONFIGS)
def test_in_fp8_the_stored_rows_are_used(tmp_path: Path, kind: str) -> None:
    """Exactly, where a row has one scale; blocks are rounded again. What the publisher left out stays unquantised."""
    folder = publish(tmp_path / "fp8", Setup.of("qwen3_vl").folder, kind)
    checkpoint, stored = opened(folder, "fp8"), load_file(folder / "model.safetensors")
    full = checkpoint.load_model("cpu")
    same(checkpoint.load_language_model("cpu").text, LanguageModel.of(full).text)
    modules = dict(full.named_modules())
    converted = [name for name, module in modules.items() if isinstance(module, Fp8Linear)]
    assert {name + ".weight" for name in converted} == set(filter(is_quantised, stored))
    for name in converted:
        linear, codes = modules[name], stored[f"{name}.weight"]
        scale = stored.get(f"{name}.weight_scale", stored.get(f"{name}.weight_scale_inv"))
        assert scale is not None
        exact = codes.float() * expanded(kind, scale, codes.float())
        numbers = linear.weight.float() * linear.scales
        if kind in ("channel", "tensor"):
            assert torch.equal(numbers, exact)
        else:
            off = (numbers - exact).abs()
            assert (off <= torch.maximum(exact.abs() / 16, linear.scales * 2.0**-10) * (1 + 1e-5)).all()


def test_a_checkpoint_in_fp8_answers_like_its_dequantised_copy(tmp_path: Path) -> None:
    source = Setup.of("qwen3_vl").folder
    ours = Setup(publish(tmp_path / "fp8", source, "fp8"))
    theirs = Setup(dequantise(tmp_path / "plain", source, "fp8"))
    assert torch.equal(ours.prompt.embeds, theirs.prompt.embeds)
    with torch.inference_mode():
        hidden = [s.model.text(inputs_embeds=s.prompt.embeds[None]).last_hidden_state for s in (ours, theirs)]
    assert torch.equal(*hidden)


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ({"quant_method": "awq", "bits": 4}, "'awq'"),
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "'bitsandbytes'"),
        ("int8", "'int8'"),
        ({"quant_method": ["fp8"]}, "fp8"),
        ({"bits": 4}, "'unknown'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt 'e5m2'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"blocks \[128\]"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, r"blocks \[0, 128\]"),
        ({"quant_method": "compressed-tensors"}, "'compressed-tensors'"),
        (compressed_tensors("channel", format="pack-quantized"), "pack-quantized"),
        (compressed_tensors("channel", quantization_status="frozen"), "frozen"),
        (compressed_tensors("channel", transform_config={"r1": {}}), "transform_config"),
        (compressed_tensors("channel", sparsity_config={"format": "sparse-24-bitmask"}), "sparse"),
        (compressed_tensors("group"), "'group'"),
        (compressed_tensors("channel", config_groups={"a": {"weights": {"num_bits": 4, "type": "int"}}}), "4 bits"),
        (compressed_tensors("channel", config_groups={}), "0 kinds"),
        (compressed_tensors("channel", config_groups=[1]), "'compressed-tensors'"),
    ],
)
def test_other_quantisations_are_refused_by_name(config: Any, cause: str) -> None:
    for raw in ({"quantization_config": config}, {"text_config": {"quantization_config": config}}):
        with pytest.raises(ModelError, match=rf"^folder is quantised .*{cause}.*take the unquantised checkpoint"):
            read_scheme(raw, "folder")


def test_a_scheme_without_blocks_or_of_an_unquantised_checkpoint() -> None:
    assert read_scheme({}, "folder") is None
    assert read_scheme({"quantization_config": None}, "folder") is None
    assert read_scheme({"quantization_config": {"quant_method": "fp8"}}, "folder") == Fp8Scheme((128, 128))
    assert read_scheme({"compression_config": CONFIGS["channel"]}, "folder") == Fp8Scheme(None)


def drop_scale(weights: dict[str, Tensor], name: str) -> None:
    del weights[f"{name}_scale_inv"]


def cut_scale(weights: dict[str, Tensor], name: str) -> None:
    weights[f"{name}_scale_inv"] = weights[f"{name}_scale_inv"][:, :1].contiguous()


def spoil_scale(weights: dict[str, Tensor], name: str) -> None:
    weights[f"{name}_scale_inv"][0, 0] = float("nan")


def count_scale(weights: dict[str, Tensor], name: str) -> None:
    weights[f"{name}_scale_inv"] = weights[f"{name}_scale_inv"].int()


def other_codes(weights: dict[str, Tensor], name: str) -> None:
    weights[name] = weights[name].float().to(torch.float8_e5m2)


@pytest.mark.parametrize(
    ("load", "dtype"), [(Checkpoint.load_model, "bfloat16"), (Checkpoint.load_language_model, "fp8")]
)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_scale, r"down_proj\.weight is stored in FP8 without a scale"),
        (
            cut_scale,
            r"down_proj\.weight_scale_inv is F32 \[2, 1\], which is no scale for a weight of shape \[64, 96\]",
        ),
        (count_scale, r"down_proj\.weight_scale_inv is I32 \[2, 2\], which is no scale"),
        (spoil_scale, r"down_proj\.weight_scale_inv holds scales that are negative or not finite"),
        (other_codes, r"down_proj\.weight is stored as F8_E5M2, which is quantised"),
    ],
)
def test_damaged_scales_are_named(
    tmp_path: Path, damage: Any, message: str, load: Callable[[Checkpoint, str], object], dtype: str
) -> None:
    published = publish(tmp_path / "fp8", Setup.of("qwen2_vl").folder, "fp8")

    def spoil(weights: dict[str, Tensor]) -> None:
        damage(weights, next(name for name in weights if name.endswith("layers.0.mlp.down_proj.weight")))

    folder = rewrite(tmp_path / "bad", published, spoil, CONFIGS["fp8"])
    with pytest.raises(ModelError, match=message):
        load(opened(folder, dtype), "cpu")
