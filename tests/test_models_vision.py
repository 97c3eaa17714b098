"""The vision tower with its replaced modules equals the tower of transformers, for every family."""

from typing import Any

import pytest
import torch
from checkpoints import FAMILIES
from family_setup import NO_MERGE, Setup
from torch.overrides import TorchFunctionMode

from sttm.engine.prefill import PrefillConfig, prefill
from sttm.models.frame_attention import FrameAttention, _rotate, attend_segments
from sttm.models.language_model import LanguageModel
from sttm.models.patch_embedding import LinearFrameEmbedding, LinearPatchEmbedding

QWEN = tuple(name for name in FAMILIES if name.startswith("qwen"))


class CountAttention(TorchFunctionMode):
    """Counts calls of scaled_dot_product_attention."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is torch.nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=QWEN)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=FAMILIES)
def any_name(request: pytest.FixtureRequest) -> str:
    return request.param


def outputs(setup: Setup) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Features (with separators) and deepstack levels, of our tower and of the tower of transformers."""
    official = setup.official
    with torch.inference_mode():
        ours, levels = setup.family.encode(setup.full, setup.inputs)
        if setup.folder.name.startswith("llava"):
            plain = setup.plain.model.get_video_features(official["pixel_values_videos"].to(setup.plain.dtype))
            features = plain.pooler_output[0].flatten(0, -2)
            if len(features) < len(ours):  # transformers 5.17 adds OneVision's separator later
                features = torch.cat([features, setup.plain.model.image_newline[None]])
            return [ours], [features]
        plain = setup.plain.model.visual(
            official["pixel_values_videos"].to(setup.plain.dtype), grid_thw=official["video_grid_thw"]
        )
    return [ours, *levels], [plain.pooler_output, *(getattr(plain, "deepstack_features", None) or [])]


def test_tower_equals_the_plain_one(any_name: str) -> None:
    for ours, plain in zip(*outputs(Setup.of(any_name)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5 * max(1.0, float(plain.abs().max())))


def test_bfloat16_tower_is_no_further_from_float32_than_the_plain_one(any_name: str) -> None:
    exact, _ = outputs(Setup.of(any_name))
    for ours, plain, expected in zip(*outputs(Setup.of(any_name, "bfloat16")), exact, strict=True):
        errors = [(x.float() - expected).square().mean().sqrt() for x in (ours, plain)]
        assert errors[0] < 1.2 * errors[1]
        assert errors[1] < 0.05 * expected.square().mean().sqrt()


def test_one_attention_call_a_layer_and_segment_length(name: str) -> None:
    """The number of frames (4 here) does not matter. Qwen2.5-VL has two window layers with windows of two sizes."""
    setup = Setup.of(name)
    blocks = setup.full.model.visual.blocks
    assert all(isinstance(block.attn, FrameAttention) for block in blocks)
    with CountAttention() as count:
        setup.family.encode(setup.full, setup.inputs)
    assert count.calls == (1 + 2 * 2 if name == "qwen2_5_vl" else len(blocks))


@pytest.mark.parametrize("bounds", [[0, 6, 12, 18], [0, 18], [0, 4, 8, 9, 13, 18], [0, 1, 18]])
def test_segments_attend_to_themselves_only(bounds: list[int]) -> None:
    query, key, value = torch.randn(3, 18, 2, 8, generator=torch.Generator().manual_seed(0))
    ours = attend_segments(query, key, value, torch.tensor(bounds, dtype=torch.int32), 0.3)
    segment = torch.bucketize(torch.arange(18), torch.tensor(bounds[1:]), right=True)
    scores = torch.einsum("qhd,khd->hqk", query, key) * 0.3
    scores.masked_fill_(segment[:, None] != segment, -torch.inf)
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_embedding_equals_transformers_bit_for_bit(dtype: torch.dtype) -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 18, 2, 8, generator=generator).to(dtype)
    cos, sin = torch.randn(2, 18, 8, generator=generator)
    ours = _rotate(torch.stack([query, key], dim=1), cos, sin)
    for mine, theirs in zip(ours.unbind(1), apply_rotary_pos_emb_vision(query, key, cos, sin), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "heads", "size"), [(37, 16, 80), (1, 2, 8), (130, 16, 72), (9, 20, 64)])
def test_a_gpu_rotates_bit_for_bit_as_a_cpu(dtype: torch.dtype, tokens: int, heads: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(tokens, 3, heads, size, generator=generator).to(dtype)
    cos, sin = torch.randn(2, tokens, size, generator=generator)
    for x in (qkv[:, :2], qkv.flip(2)[:, 1:], qkv.transpose(1, 2).contiguous().transpose(1, 2)[:, :2]):
        assert torch.equal(_rotate(x.cuda(), cos.cuda(), sin.cuda()).cpu(), _rotate(x, cos, sin))


def test_patch_embedding_shares_the_weights(name: str) -> None:
    setup = Setup.of(name)
    ours, plain = setup.full.model.visual.patch_embed, setup.plain.model.visual.patch_embed
    assert isinstance(ours, LinearPatchEmbedding)
    patches = torch.randn(7, ours.weight.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(patches), plain(patches), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_frame_embedding_reads_what_the_convolution_reads(channels_last: bool) -> None:
    """Also if a part of a patch is left over at the border, as with 384 pixels and patches of 14."""
    generator = torch.Generator().manual_seed(0)
    convolution = torch.nn.Conv2d(3, 8, kernel_size=14, stride=14, padding="valid").requires_grad_(False)
    frames = torch.randn(2, 3, 34, 48, generator=generator)
    if channels_last:
        frames = frames.contiguous(memory_format=torch.channels_last)
    ours = LinearFrameEmbedding(convolution)(frames)
    torch.testing.assert_close(ours, convolution(frames), rtol=1e-5, atol=1e-5)
    assert ours.flatten(2).transpose(1, 2).is_contiguous()  # so that the tower's next step needs no copy


@pytest.mark.parametrize("wanted", [-2, [0, 2, -1], 3])
def test_named_layers_of_a_llava_tower_equal_transformers_own(wanted: int | list[int]) -> None:
    setup = Setup.of("llava_next_video")
    family, tower = setup.family, setup.full.model.vision_tower
    config = type(family.config).from_dict({**family.config.to_dict(), "vision_feature_layer": wanted})
    frames = torch.randn(2, 3, 98, 98, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = type(family)(config, family.tokenizer, family.processor)._tower_states(tower, frames)
        every = tower(frames, output_hidden_states=True).hidden_states
    named = [wanted] if isinstance(wanted, int) else wanted
    assert torch.equal(ours, torch.cat([every[layer] for layer in named], dim=-1)[:, 1:])


def test_overlapping_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="not a matrix product"):
        LinearPatchEmbedding(torch.nn.Conv3d(3, 8, kernel_size=2, stride=1))


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_gpu_prompt_and_prefill_equal_the_cpus(name: str) -> None:
    """No tensor stays on the wrong device. Results in float32 differ only by the order of sums."""
    setup = Setup.of(name)
    full = setup.checkpoint.load_model("cuda")
    prompt = setup.family.prompt(full, setup.inputs)
    assert torch.equal(prompt.positions.cpu(), setup.prompt.positions)
    torch.testing.assert_close(prompt.embeds.cpu(), setup.prompt.embeds, rtol=1e-3, atol=1e-3)
    ours = prefill(LanguageModel.of(full), prompt, NO_MERGE, PrefillConfig()).cache.to("cpu")
    theirs = setup.prefill(NO_MERGE).cache
    torch.testing.assert_close(ours.keys + ours.values, theirs.keys + theirs.values, rtol=1e-3, atol=1e-3)
