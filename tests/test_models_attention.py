"""Attention over the shared keys of a video and a row's own keys equals attention over their concatenation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sttm.engine.decoder import causal_mask
from sttm.models import attention
from sttm.models.attention import additive, attend, with_bias

DIM = 8


def plain(query: Tensor, video: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """Attention by torch, with a copy of the video's keys for every row."""
    rows, groups = len(query), query.shape[1] // video[0].shape[0]
    keys, values = (
        torch.cat([v.expand(rows, *v.shape), o], dim=2).repeat_interleave(groups, dim=1)
        for v, o in zip(video, own, strict=True)
    )
    if mask is not None:
        mask = torch.cat([mask.new_ones(*mask.shape[:-1], video[0].shape[1]), mask], dim=-1)
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=0.3)


def sample(rows: int, heads: int, groups: int, new: int, video: int, own: int, seed: int = 0) -> tuple:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    query = normal(rows, heads * groups, new, DIM) * 3
    return (
        query,
        (normal(heads, video, DIM), normal(heads, video, DIM)),
        (normal(rows, heads, own, DIM), normal(rows, heads, own, DIM)),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99)
)
def test_equals_attention_over_the_concatenation(
    rows: int, heads: int, groups: int, new: int, video: int, seed: int
) -> None:
    inputs = sample(rows, heads, groups, new, video, new, seed)
    pad = torch.randint(0, new, (rows,), generator=torch.Generator().manual_seed(seed))
    mask = causal_mask(0, pad, new)
    real = torch.arange(new)[None, None, :, None] >= pad[:, None, None, None]  # results of padding are not used
    ours, theirs = attend(*inputs, mask, 0.3), plain(*inputs, mask)
    torch.testing.assert_close(ours * real, theirs * real, rtol=1e-5, atol=1e-5)


def test_one_token_without_a_mask_sees_everything() -> None:
    inputs = sample(3, 2, 2, 1, 7, 4)
    torch.testing.assert_close(attend(*inputs, None, 0.3), plain(*inputs, None), rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_only_the_video_is_not_nan() -> None:
    inputs = sample(2, 2, 1, 1, 5, 3)
    mask = torch.zeros(2, 1, 1, 3, dtype=torch.bool)
    torch.testing.assert_close(attend(*inputs, mask, 0.3), plain(*inputs, mask), rtol=1e-5, atol=1e-5)


def test_chunks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = sample(4, 2, 3, 5, 11, 5)
    whole = attend(*inputs, None, 0.3)
    monkeypatch.setattr(attention, "_SCORES_AT_ONCE", 50)
    torch.testing.assert_close(attend(*inputs, None, 0.3), whole, rtol=1e-6, atol=1e-6)


def test_large_scores_of_half_precision_stay_finite() -> None:
    query, video, own = sample(2, 2, 2, 3, 6, 3)
    half = [(query * 50).bfloat16(), tuple(x.bfloat16() for x in video), tuple(x.bfloat16() for x in own)]
    exact = [x.double() if isinstance(x, Tensor) else tuple(y.double() for y in x) for x in half]
    got = attend(*half, None, 0.3)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), plain(*exact, None), rtol=2e-2, atol=2e-2)


def test_bias_makes_a_key_count_as_often_as_it_says() -> None:
    """Proportional attention over a key equals plain attention over copies of that key."""
    query, video, own = sample(2, 2, 2, 3, 5, 3)
    times = torch.tensor([1, 4, 1, 2, 7])
    copied = tuple(x.repeat_interleave(times, dim=1) for x in video)
    mask = causal_mask(0, torch.zeros(2, dtype=torch.long), 3)
    got = attend(query, video, own, mask, 0.3, times.float().log())
    torch.testing.assert_close(got, plain(query, copied, own, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_in_extra_channels_equals_a_bias_mask(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, DIM, generator=g).to(dtype) for _ in range(3))
    bias, scaling = torch.arange(1, 10).float().log() * 3, DIM**-0.5
    wide = torch.nn.functional.scaled_dot_product_attention(
        *with_bias(query, key, value, bias / scaling), is_causal=True, scale=scaling
    )
    causal = torch.ones(9, 9).tril().log() + bias
    exact = torch.nn.functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), causal.double(), scale=scaling
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(wide[..., :DIM].double(), exact, rtol=tolerance, atol=tolerance)
    assert not wide[..., DIM:].any()


@pytest.mark.gpu
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "new"), [(1, 1), (1, 32), (64, 1), (64, 32), (3, 7)])
@pytest.mark.parametrize(("heads", "groups"), [(4, 7), (2, 1)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_equal_the_plain_products(
    size: int, rows: int, new: int, heads: int, groups: int, has_bias: bool, dtype: torch.dtype
) -> None:
    """Rows have different lengths and lie in buffers longer than what is shown; the reference is float32 arithmetic."""
    g = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda").to(dtype)

    query = (normal(rows, new, heads * groups, size) * 3).transpose(1, 2)  # the memory layout that a layer produces
    video = normal(heads, 1003, size), normal(heads, 1003, size)
    own = normal(rows, heads, 128, size)[:, :, :64], normal(rows, heads, 128, size)[:, :, :64]
    pad = torch.randint(0, new, (rows,), generator=g, device="cuda")
    column, place = torch.arange(64, device="cuda"), torch.arange(new, device="cuda")
    mask = ((column <= place[:, None])[None] & (column >= pad[:, None, None]))[:, None]
    bias = torch.arange(1, 1004, device="cuda").float().log() if has_bias else None
    inputs, real = (query, video, own), (place >= pad[:, None])[:, None, :, None]
    for seen in (mask, additive(mask, dtype), None):
        assert attention._has_kernels(query, own[0])
        got = attend(*inputs, seen, size**-0.5, bias)
        assert got.dtype == dtype
        assert got.transpose(1, 2).is_contiguous()
        assert torch.isfinite(got).all()  # padding too, because its keys and values stay in the buffers
        exact = attend(query.float(), *(tuple(x.float() for x in p) for p in (video, own)), seen, size**-0.5, bias)
        tolerance = 2e-2 if dtype == torch.bfloat16 else 3e-3
        torch.testing.assert_close(got.float() * real, exact * real, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
def test_a_query_that_sees_only_the_video_is_not_nan_by_kernel() -> None:
    g = torch.Generator("cuda").manual_seed(0)
    query, key, value = (torch.randn(2, 4, 1, 64, generator=g, device="cuda").bfloat16() for _ in range(3))
    video, own = (
        (key[0].expand(4, 5, 64), value[0].expand(4, 5, 64)),
        (key.expand(2, 4, 16, 64), value.expand(2, 4, 16, 64)),
    )
    got = attend(query, video, own, torch.zeros(2, 1, 1, 16, dtype=torch.bool, device="cuda"), 0.125)
    torch.testing.assert_close(got, value[:1].expand_as(got), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_no_kernel_is_asked_for_what_it_cannot_do() -> None:
    """Plain products handle float32, and heads or mask rows whose size is not a multiple of 16 bytes."""
    for dtype, size, shown in ((torch.float32, 64, 64), (torch.bfloat16, 36, 64), (torch.bfloat16, 64, 63)):
        query, video, own = (torch.randn(2, 4, tokens, size, device="cuda").to(dtype) for tokens in (3, 50, shown))
        mask = torch.ones(2, 1, 3, shown, dtype=torch.bool, device="cuda")
        got = attend(query, (video[0], video[1]), (own, own), mask, 0.2)
        exact = attend(
            query.cpu().float(),
            (video[0].cpu().float(), video[1].cpu().float()),
            (own.cpu().float(),) * 2,
            mask.cpu(),
            0.2,
        )
        torch.testing.assert_close(got.cpu().float(), exact, rtol=2e-2, atol=2e-2)


def test_a_mask_to_add_hides_what_the_bool_one_hides() -> None:
    query, video, own = sample(3, 2, 2, 5, 7, 5)
    mask = causal_mask(0, torch.tensor([0, 2, 3]), 5)
    real = torch.arange(5)[None, None, :, None] >= torch.tensor([0, 2, 3])[:, None, None, None]
    got, expected = (attend(query, video, own, m, 0.3) * real for m in (additive(mask, torch.float32), mask))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
