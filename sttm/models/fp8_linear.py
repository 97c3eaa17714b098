"""Linear modules that multiply in FP8, and which linear modules of a model become such modules.

The linear modules of vision blocks and decoder layers do nearly all of a prefill's arithmetic. Embeddings, norms,
projector and output head stay as they are, and so does attention itself.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sttm.models.fp8 import Fp8Rows, aligned, product, quantise_rows

_BLOCK_LISTS = ("layers", "blocks")  # what transformers calls the lists of a decoder's layers and a tower's blocks

# Takes the name of a linear module's weight, the weight, and the device where it shall go. Returns what the module
# shall multiply by: FP8 rows that the checkpoint holds, or the weight, to be rounded; None leaves the module as it is.
WeightSource = Callable[[str, Tensor, torch.device], Fp8Rows | Tensor | None]


class Fp8Linear(nn.Module):
    """x @ weight^T + bias with `x` and `weight` rounded to FP8, a scale for each token and each output channel.

    Args:
        weight: one row for each output channel.
        bias: [N]; None adds nothing.

    Attributes:
        weight: float8_e4m3fn [N', K'], both sizes rounded up to multiples of 16 with zeros.
        scales: float32 [N', 1], the scales of the output channels.
        bias: bfloat16 [N']; None adds nothing.
    """

    scales: Tensor

    def __init__(self, weight: Fp8Rows, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features = len(weight.codes)
        missing = aligned(self.out_features) - self.out_features
        codes = nn.functional.pad(weight.codes.view(torch.uint8), (0, 0, 0, missing)).view(weight.codes.dtype)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", nn.functional.pad(weight.scales, (0, 0, 0, missing)))
        padded = None if bias is None else nn.functional.pad(bias.detach().to(torch.bfloat16), (0, missing))
        self.bias = None if padded is None else nn.Parameter(padded, requires_grad=False)

    def forward(self, x: Tensor | Fp8Rows) -> Tensor:
        """[..., K] in any float dtype, or rows that were rounded already -> bfloat16 [..., N]."""
        rows = x if isinstance(x, Fp8Rows) else quantise_rows(x)
        weight = Fp8Rows(self.weight, self.scales, self.weight.shape[:1])
        out = product(rows, weight, self.bias)
        return out[:, : self.out_features].unflatten(0, rows.leading)


def fp8_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the vision blocks and decoder layers whose linear modules FP8 is meant for."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in _BLOCK_LISTS:
            yield from ((f"{name}.{number}", block) for number, block in enumerate(module))


def use_fp8(
    block: nn.Module, prefix: str = "", source: WeightSource | None = None, device: torch.device | None = None
) -> None:
    """Replace the linear modules of a vision block or decoder layer by FP8 ones, in place, one after the other.

    Args:
        block: a loaded block.
        prefix: name of the block in the model, for `source`.
        source: where the weights come from; None rounds the modules' own weights.
        device: where the FP8 modules go; None leaves them where the block is. From the CPU only one weight at a time
            goes to the device before it is rounded.
    """
    for parent_name, parent in list(block.named_modules(prefix=prefix)):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                place = device or child.weight.device
                full = f"{parent_name}.{name}.weight".lstrip(".")
                weight = source(full, child.weight, place) if source else child.weight
                if weight is not None:
                    rows = weight if isinstance(weight, Fp8Rows) else quantise_rows(weight.detach().to(place))
                    setattr(parent, name, Fp8Linear(rows, child.bias if child.bias is None else child.bias.to(place)))
