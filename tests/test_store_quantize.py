"""Errors of each scheme are bounded by its own step, whatever the offset, the group sizes and the dtype."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm.errors import StoreError
from sttm.store.kv.quantize import LayerShape, _below, pack_unchecked, parts_of, require_storable, unpack
from sttm.store.kv.scheme import SCHEMES

LOSSY = ["int8", "k8v4", "int4"]


def pack(key: torch.Tensor, value: torch.Tensor, shape: LayerShape) -> tuple[torch.Tensor, ...]:
    """The parts of one layer [H, N, D], checked as a writer checks them."""
    parts, extremes = pack_unchecked(key[None], value[None], shape)
    require_storable(extremes[0].cpu(), shape)
    return tuple(part[0] for part in parts)


def round_trip(key: torch.Tensor, value: torch.Tensor, scheme: str, ends: tuple[int, int] = (0, 0)):
    shape = LayerShape(*key.shape, key.dtype, scheme, *ends)
    parts = pack(key, value, shape)
    for part, planned in zip(parts, parts_of(shape), strict=True):
        assert (part.dtype, tuple(part.shape)) == (planned.dtype, planned.shape), planned.name
        assert not planned.name.endswith("_scale") or (part > 0).all()
    return unpack(parts, shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_exact_keeps_every_bit(dtype: torch.dtype) -> None:
    key, value = torch.randn(2, 3, 10, 8).to(dtype)
    got_key, got_value = round_trip(key, value, "exact")
    assert torch.equal(key, got_key)
    assert torch.equal(value, got_value)
    assert got_key.dtype == dtype


@settings(max_examples=100, deadline=None)
@given(
    scheme=st.sampled_from(LOSSY),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 300),
    head_dim=st.sampled_from([2, 6, 32, 64]),
    offset=st.sampled_from([0.0, 1.0, -300.0, 3e4]),
    spread=st.sampled_from([0.0, 1e-6, 5e-6, 2e-5, 1.0, 50.0]),
    seed=st.integers(0, 9),
)
def test_no_number_is_off_by_more_than_half_a_step(scheme, heads, tokens, head_dim, offset, spread, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, heads, tokens, head_dim, generator=generator) * spread + offset
    got_key, got_value = round_trip(key, value, scheme)

    rules, shape = SCHEMES[scheme], LayerShape(heads, tokens, head_dim, torch.float32, scheme)
    # Zero and scale are fp16: the range of a group may grow by one fp16 step of its ends.
    peak = float(torch.maximum(key.abs().max(), value.abs().max()))
    slack = peak * 2**-10 + 2**-23
    for start in range(0, tokens, rules.key_group):
        group = slice(start, start + rules.key_group)
        width = key[:, group].amax(1, keepdim=True) - key[:, group].amin(1, keepdim=True)
        step = (width + slack) * (1 + 2**-9) / (2**rules.key_bits - 1) + 2**-24
        assert ((key[:, group] - got_key[:, group]).abs() <= step / 2 + peak * 2**-20 + 1e-9).all()
    grouped, got = value.unflatten(-1, (-1, shape.value_group)), got_value.unflatten(-1, (-1, shape.value_group))
    width = grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)
    step = (width + slack) * (1 + 2**-9) / (2**rules.value_bits - 1) + 2**-24
    assert ((grouped - got).abs() <= step / 2 + peak * 2**-20 + 1e-9).all()


@pytest.mark.parametrize("scheme", LOSSY)
@pytest.mark.parametrize("constant", [0.0, 1.0, -0.375, 400.0])
def test_constant_channels_come_back_exactly(scheme: str, constant: float) -> None:
    key = torch.full((2, 70, 32), constant)
    got_key, got_value = round_trip(key, key, scheme)
    assert torch.equal(got_key, key)
    assert torch.equal(got_value, key)


@pytest.mark.parametrize("scheme", ["exact", *LOSSY])
@pytest.mark.parametrize("tokens", [100, 128, 300])
def test_layers_unpacked_together_are_those_unpacked_alone(scheme: str, tokens: int) -> None:
    shape = LayerShape(2, tokens, 32, torch.bfloat16, scheme, *((9, 3) if scheme == "int4" else (0, 0)))
    layers = [pack(*torch.randn(2, 2, tokens, 32).bfloat16(), shape) for _ in range(3)]
    together = unpack(tuple(map(torch.stack, zip(*layers, strict=True))), shape)
    for layer, parts in enumerate(layers):
        for got, expected in zip(together, unpack(parts, shape), strict=True):
            assert torch.equal(got[layer], expected)


def test_int4_keeps_the_text_around_the_video_exact() -> None:
    key, value = torch.randn(2, 2, 80, 32).bfloat16()
    got_key, got_value = round_trip(key, value, "int4", ends=(9, 3))
    for whole, got in ((key, got_key), (value, got_value)):
        assert torch.equal(got[:, :9], whole[:, :9])
        assert torch.equal(got[:, -3:], whole[:, -3:])
        assert not torch.equal(got[:, 9:-3], whole[:, 9:-3])


@pytest.mark.parametrize("scheme", ["exact", *LOSSY])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(scheme: str, bad: float) -> None:
    key = torch.zeros(1, 5, 32)
    key[0, 2, 1] = bad
    for pair in ((key, torch.zeros(1, 5, 32)), (torch.zeros(1, 5, 32), key)):
        with pytest.raises(StoreError, match="NaN or infinite"):
            round_trip(*pair, scheme)


@pytest.mark.parametrize("huge", [3e7, -7e4, 3e38])
def test_numbers_beyond_fp16_are_refused_with_a_way_out(huge: float) -> None:
    key = torch.full((1, 5, 32), huge)
    with pytest.raises(StoreError, match="too large for 8-bit storage; use kv_scheme: exact"):
        round_trip(key, key, "int8")


def test_eight_bits_cost_little_more_than_half_of_bf16() -> None:
    size = {
        scheme: sum(
            torch.Size(part.shape).numel() * part.dtype.itemsize
            for part in parts_of(LayerShape(4, 7526, 128, torch.bfloat16, scheme))
        )
        for scheme in ("exact", *LOSSY)
    }
    ratios = {scheme: size[scheme] / size["exact"] for scheme in LOSSY}
    assert ratios == pytest.approx({"int8": 0.516, "k8v4": 0.414, "int4": 0.281}, abs=0.005)


def test_every_fp16_number_finds_the_one_below() -> None:
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    numbers = numbers[torch.isfinite(numbers)]
    down = torch.nextafter(numbers, torch.full_like(numbers, -torch.inf))
    assert torch.equal(_below(numbers), down)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", LOSSY)
def test_a_gpu_packs_the_same_bytes(scheme: str) -> None:
    key, value = torch.randn(2, 4, 300, 64).bfloat16()
    shape = LayerShape(4, 300, 64, torch.bfloat16, scheme)
    for here, there in zip(pack(key, value, shape), pack(key.cuda(), value.cuda(), shape), strict=True):
        assert torch.equal(here, there.cpu())
