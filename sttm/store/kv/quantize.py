"""Keys and values in fewer bits: one function packs layers, one unpacks them, one lists the tensors of a packed layer.

Shapes: H kv heads, N tokens, D head_dim, E tokens kept exact (at both ends), G groups.
A number x of a group is stored as q = round((x - zero) / scale) with q in 0 .. 2^bits - 1; two 4-bit q's share a byte.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sttm.errors import StoreError
from sttm.store.kv.scheme import SCHEMES, Scheme

SMALLEST_SCALE = 2.0**-24  # the smallest positive fp16 number
ALWAYS_EXACT = 4  # so many first tokens stay exact under `keeps_text`: every later token attends to them strongly


@dataclass(frozen=True)
class Part:
    """One tensor of a packed layer: its name, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerShape:
    """The numbers that decide which tensors a packed layer has.

    Attributes:
        heads, tokens, head_dim: H, N, D of the keys and of the values.
        dtype: dtype of the cache.
        scheme: name in `SCHEMES`.
        leading, trailing: number of tokens at either end kept in the cache's dtype; 0 unless the scheme keeps text.
    """

    heads: int
    tokens: int
    head_dim: int
    dtype: torch.dtype
    scheme: str
    leading: int = 0
    trailing: int = 0

    @property
    def rules(self) -> Scheme:
        """The scheme's bits and groups."""
        return SCHEMES[self.scheme]

    @property
    def value_group(self) -> int:
        """Number of channels that share a value scale: the scheme's group, or all D if the group does not divide D."""
        group = self.rules.value_group
        return group if group and self.head_dim % group == 0 else self.head_dim


def parts_of(shape: LayerShape) -> tuple[Part, ...]:
    """The tensors of a packed layer of this shape, in order."""
    H, N, D = shape.heads, shape.tokens, shape.head_dim
    if shape.scheme == "exact":
        return Part("k", shape.dtype, (H, N, D)), Part("v", shape.dtype, (H, N, D))
    rules, E = shape.rules, shape.leading + shape.trailing
    key_groups, value_groups = -(-(N - E) // rules.key_group), D // shape.value_group
    # Wider dtypes first, so that every tensor begins at a multiple of its item size.
    kept = (Part("k_exact", shape.dtype, (H, E, D)), Part("v_exact", shape.dtype, (H, E, D))) if E else ()
    return (
        *kept,
        Part("k_scale", torch.float16, (H, key_groups, D)),
        Part("k_zero", torch.float16, (H, key_groups, D)),
        Part("v_scale", torch.float16, (H, N - E, value_groups)),
        Part("v_zero", torch.float16, (H, N - E, value_groups)),
        Part("k", torch.uint8, (H, N - E, D * rules.key_bits // 8)),
        Part("v", torch.uint8, (H, N - E, D * rules.value_bits // 8)),
    )


def pack_unchecked(key: Tensor, value: Tensor, shape: LayerShape) -> tuple[tuple[Tensor, ...], Tensor]:
    """Pack layers of one shape on their device, without waiting for a GPU.

    The caller gives the extremes of each layer to `require_storable` before anything is stored.

    Args:
        key, value: [layers, H, N, D] in `shape.dtype`.
        shape: shape of each layer.

    Returns:
        The tensors that `parts_of` lists, each [layers, ...], and the extremes of keys and values, float32
        [layers, 2, 4]: lowest and highest number, lowest zero, largest scale. They are NaN if any number is NaN.
    """
    if shape.scheme == "exact":
        return (key, value), torch.stack([_extremes(*_lowest_highest(tensor)) for tensor in (key, value)], dim=1)
    rules, end = shape.rules, shape.tokens - shape.trailing
    middle_key, middle_value = key[..., shape.leading : end, :].float(), value[..., shape.leading : end, :].float()
    key_codes, key_scale, key_zero, of_keys = _pack_keys(middle_key, rules.key_group, rules.key_bits)
    value_codes, value_scale, value_zero, of_values = _pack_values(middle_value, shape.value_group, rules.value_bits)
    packed = (key_scale, key_zero, value_scale, value_zero, key_codes, value_codes)
    if shape.leading + shape.trailing == 0:
        return packed, torch.stack((of_keys, of_values), dim=1)
    ends = [torch.cat((tensor[..., : shape.leading, :], tensor[..., end:, :]), dim=-2) for tensor in (key, value)]
    of_ends = [_extremes(*_lowest_highest(tensor)) for tensor in ends]
    return (*ends, *packed), torch.stack((_widest([of_keys, of_ends[0]]), _widest([of_values, of_ends[1]])), dim=1)


def require_storable(extremes: Tensor, shape: LayerShape) -> None:
    """Refuse a packed layer whose numbers its scheme cannot store.

    Args:
        extremes: float32 [2, 4] on the CPU, from `pack_unchecked`.
        shape: shape of the layer.

    Raises:
        StoreError: a number is not finite, or too large for an fp16 scale and zero.
    """
    bits = (shape.rules.key_bits, shape.rules.value_bits)
    for what, row, width in zip(("key", "value"), extremes, bits, strict=True):
        if not torch.isfinite(row[:2]).all():
            raise StoreError(f"a {what} is NaN or infinite: the prefill that made it went wrong; nothing was stored")
        if not torch.isfinite(row[2:]).all():
            peak = float(row[:2].abs().max())
            raise StoreError(f"{what}s up to {peak:.3g} are too large for {width}-bit storage; use kv_scheme: exact")


def unpack(parts: tuple[Tensor, ...], shape: LayerShape) -> tuple[Tensor, Tensor]:
    """Keys and values [..., H, N, D] in `shape.dtype` from the tensors of packed layers.

    Args:
        parts: the tensors that `parts_of` lists; for several layers of one shape each is [layers, ...].
        shape: shape of each layer.
    """
    if shape.scheme == "exact":
        return parts[0], parts[1]
    *kept, key_scale, key_zero, value_scale, value_zero, key_codes, value_codes = parts
    rules, end = shape.rules, shape.tokens - shape.trailing
    size = (*key_codes.shape[:-2], shape.tokens, shape.head_dim)
    key, value = (torch.empty(size, dtype=shape.dtype, device=key_codes.device) for _ in range(2))
    middle = slice(shape.leading, end)
    _unpack_keys(_widen(key_codes, rules.key_bits), key_scale, key_zero, rules.key_group, key[..., middle, :])
    groups, out = (
        numbers.unflatten(-1, (-1, shape.value_group))
        for numbers in (_widen(value_codes, rules.value_bits), value[..., middle, :])
    )
    _decode(groups, value_scale[..., None], value_zero[..., None], out)
    for whole, exact in zip((key, value), kept, strict=False):
        whole[..., : shape.leading, :] = exact[..., : shape.leading, :]
        whole[..., end:, :] = exact[..., shape.leading :, :]
    return key, value


def _pack_keys(key: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pack keys [layers, H, N, D] per channel, in groups of tokens; the last group may be shorter."""
    whole = key.shape[-2] // group * group
    scales, zeros, codes, extremes = [], [], [], []
    for tokens, size in ((key[..., :whole, :], group), (key[..., whole:, :], key.shape[-2] - whole)):
        if tokens.shape[-2]:
            grouped = tokens.unflatten(-2, (-1, size))  # [layers, H, G, group, D]
            scale, zero, found = _range_of(grouped, -2, bits)
            codes.append(_encode(grouped, scale[..., None, :], zero[..., None, :]).flatten(-3, -2))
            scales.append(scale)
            zeros.append(zero)
            extremes.append(found)
    packed, scale, zero = (torch.cat(parts, dim=-2) for parts in (codes, scales, zeros))
    return _narrow(packed, bits), scale, zero, _widest(extremes)


def _unpack_keys(codes: Tensor, scale: Tensor, zero: Tensor, group: int, out: Tensor) -> None:
    groups, rest = divmod(codes.shape[-2], group)
    whole = groups * group
    if groups:
        head, target = (numbers[..., :whole, :].unflatten(-2, (groups, group)) for numbers in (codes, out))
        _decode(head, scale[..., :groups, None, :], zero[..., :groups, None, :], target)
    if rest:
        _decode(codes[..., whole:, :], scale[..., groups:, :], zero[..., groups:, :], out[..., whole:, :])


def _pack_values(value: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grouped = value.unflatten(-1, (-1, group))  # [layers, H, N, G, group]
    scale, zero, extremes = _range_of(grouped, -1, bits)
    return _narrow(_encode(grouped, scale[..., None], zero[..., None]).flatten(-2), bits), scale, zero, extremes


def _range_of(grouped: Tensor, axis: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and zero of each group, fp16, rounded outwards so that no number is clipped; and extremes [layers, 4]."""
    low, high = grouped.amin(axis), grouped.amax(axis)
    zero = low.half()
    zero = torch.where(zero.float() > low, _below(zero), zero)
    # Divide by a tensor: on a GPU, division by a Python number multiplies by its rounded inverse.
    exact_scale = (high - zero.float()) / high.new_full((), 2**bits - 1)
    scale = exact_scale.half()
    scale = torch.where(scale.float() < exact_scale, -_below(-scale), scale).clamp_min(SMALLEST_SCALE)
    lowest, highest = low.flatten(1).amin(1), high.flatten(1).amax(1)
    return scale, zero, _extremes(lowest, highest, zero.flatten(1).amin(1), scale.flatten(1).amax(1))


def _lowest_highest(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest number of each layer, [layers] each."""
    low, high = numbers.flatten(1).aminmax(dim=1)
    return low, high


def _extremes(low: Tensor, high: Tensor, zero: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """The extremes float32 [layers, 4]; numbers that are kept exact have no zero and no scale, which count as 0."""
    nothing = torch.zeros_like(low)
    return torch.stack(
        [
            low.float(),
            high.float(),
            (nothing if zero is None else zero).float(),
            (nothing if scale is None else scale).float(),
        ],
        dim=-1,
    )


def _widest(extremes: list[Tensor]) -> Tensor:
    """The extremes of a tensor from the extremes of its parts, each [layers, 4]."""
    low, high, zero, scale = torch.stack(extremes).unbind(-1)
    return torch.stack((low.amin(0), high.amax(0), zero.amin(0), scale.amax(0)), dim=-1)


def _below(numbers: Tensor) -> Tensor:
    """For each fp16 number the next smaller one, computed on the bits, because CUDA has no nextafter for fp16."""
    bits = numbers.view(torch.int16)  # sign and magnitude; -32767 is the negative number next to zero
    return torch.where(numbers > 0, bits - 1, torch.where(bits == 0, -32767, bits + 1)).view(torch.float16)


def _encode(numbers: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    # The result is never outside 0 .. 2^bits - 1, because zero and scale are rounded outwards.
    return (numbers - zero.float()).div_(scale.float()).round_().to(torch.uint8)


def _decode(codes: Tensor, scale: Tensor, zero: Tensor, out: Tensor) -> None:
    if out.is_cuda:  # a GPU kernel converts dtypes for free; on a CPU a mixed operation is a slow loop
        torch.add(codes * scale.float(), zero.float(), out=out)
    else:
        out.copy_(codes.float().mul_(scale.float()).add_(zero.float()))


def _narrow(codes: Tensor, bits: int) -> Tensor:
    """Put two 4-bit codes into a byte, the even channel into the low half; 8-bit codes stay as they are."""
    return codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)


def _widen(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `_narrow`: each byte hl spreads to the two bytes 0l 0h of a little-endian word."""
    if bits == 8:
        return codes
    words = codes.to(torch.int16)
    return ((words << 4).bitwise_or_(words)).bitwise_and_(0x0F0F).view(torch.uint8)
