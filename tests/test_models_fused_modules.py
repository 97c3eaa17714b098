"""The modules that replace those of transformers compute the same, in plain torch on a CPU and by kernels on a GPU."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES
from family_setup import Setup
from torch import nn

from sttm import models
from sttm.errors import ModelError
from sttm.models import fused_modules
from sttm.models.fused_modules import GatedMLP, QuickGELU, RMSNorm, fuse, require_kernels
from sttm.models.processor import import_torchvision

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
THEIRS = ("RMSNorm", "MLP", "QuickGELUActivation")


@pytest.fixture(autouse=True, scope="module")
def transformers_can_be_imported() -> None:
    import_torchvision()


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """Every 16-bit number, including infinities and NaN; for 32 bits, many numbers between -100 and 100."""
    if dtype.itemsize == 4:
        return torch.linspace(-100, 100, 100_003)
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quick_gelu_equals_transformers_bit_for_bit(dtype: torch.dtype, device: str) -> None:
    from transformers.activations import QuickGELUActivation

    x = every_number(dtype).to(device)
    torch.testing.assert_close(QuickGELU()(x), QuickGELUActivation()(x), rtol=0, atol=0, equal_nan=True)


class _Same(nn.Module):
    """A linear layer that changes nothing, so that only the steps between the layers are compared."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_mlp_equals_transformers_bit_for_bit(dtype: torch.dtype, device: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    theirs: Any = nn.Module()
    theirs.gate_proj, theirs.down_proj, theirs.act_fn = _Same(), _Same(), nn.SiLU()
    theirs.up_proj = nn.Linear(1, 1)
    theirs.up_proj.forward = lambda x: x.flip(0) * 0.7
    x = every_number(dtype).to(device)
    expected = LlamaMLP.forward(theirs, x.clone())
    torch.testing.assert_close(GatedMLP(theirs)(x.clone()), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 3584), (2, 37, 1280), (1, 5, 28, 128), (1, 8192), (3, 100)])
def test_rms_norm_equals_transformers_up_to_the_order_of_its_sum(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    """A GPU adds the squares in another order, which sometimes rounds a 16-bit number to its neighbour."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    generator = torch.Generator().manual_seed(0)
    theirs = LlamaRMSNorm(shape[-1], eps=1e-6)
    theirs.weight.data = torch.randn(shape[-1], generator=generator)
    theirs = theirs.to(dtype).to(device)
    x = (3 * torch.randn(shape, generator=generator)).to(dtype).to(device)
    with torch.inference_mode():
        ours, expected = RMSNorm(theirs)(x), theirs(x)
    if device == "cpu":
        assert torch.equal(ours, expected)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, expected, rtol=(2 if dtype.itemsize == 2 else 4) * step, atol=0)
    assert (ours != expected).float().mean() < (0.02 if dtype.itemsize == 2 else 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_none_of_transformers_own_is_left_where_ours_can_stand(name: str) -> None:
    """This holds in the whole model and in the language model alone; the plain model gives the expected number."""
    setup = Setup.of(name)

    def count(model: Any, is_one: Callable[[nn.Module], bool]) -> int:
        return sum(is_one(module) for module in model.modules())

    def is_theirs(module: nn.Module) -> bool:
        is_gated = hasattr(module, "gate_proj") or not type(module).__name__.endswith("MLP")
        return type(module).__name__.endswith(THEIRS) and is_gated and not is_ours(module)

    def is_ours(module: nn.Module) -> bool:
        return isinstance(module, QuickGELU | RMSNorm | GatedMLP)

    alone = setup.checkpoint.load_language_model("cpu").text
    for ours, plain in ((setup.full, setup.plain), (alone, setup.plain.model.language_model)):
        assert count(ours, is_theirs) == 0
        assert count(ours, is_ours) == count(plain, is_theirs) > 4
        assert {n for n in ours.state_dict() if "norm" in n} == {n for n in plain.state_dict() if "norm" in n}


def test_other_modules_stay() -> None:
    model = nn.Sequential(nn.RMSNorm(4), nn.SiLU(), nn.Linear(4, 4))
    before = list(model)
    fuse(model)
    assert list(model) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels can be compiled here")
def test_a_machine_that_cannot_compile_kernels_is_told_what_it_needs() -> None:
    with pytest.raises(ModelError, match=r"triton.*C compiler"):
        require_kernels(torch.device("cpu"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), torch.AcceleratorError("lost"), OSError(28, "No space left on device")]
)
def test_a_fault_that_another_machine_may_not_have_is_not_called_a_missing_compiler(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kernels:
        @staticmethod
        def quick_gelu(x: torch.Tensor) -> torch.Tensor:
            raise error

    monkeypatch.setitem(sys.modules, "sttm.models.triton_kernels", Kernels)
    monkeypatch.setattr(models, "triton_kernels", Kernels, raising=False)
    with pytest.raises(type(error)) as raised:
        require_kernels(torch.device("cpu"))
    assert raised.value is error


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_tried_while_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []
    monkeypatch.setattr(fused_modules, "require_kernels", tried.append)
    Setup.of("qwen2_vl").checkpoint.load_language_model("cuda")
    assert [device.type for device in tried] == ["cuda"]


def test_elements_are_counted_in_64_bits_and_rows_have_one_variant() -> None:
    """A tensor of 113,360 tokens and 18,944 channels has over 2^31 elements; a CUDA graph cannot compile."""
    pytest.importorskip("triton")
    from sttm.models import triton_kernels

    for kernel in (triton_kernels._quick_gelu_kernel, triton_kernels._silu_product_kernel):
        assert [p.annotation_type for p in kernel.params if p.name == "numel"] == ["i64"]
    assert [p.do_not_specialize for p in triton_kernels._rms_norm_kernel.params if p.name == "rows"] == [True]


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    from sttm.models import triton_kernels

    gate, up = (torch.full((2**20 + 1, 2048), value, dtype=torch.bfloat16, device="cuda") for value in (1.0, 2.0))
    for ours, expected in ((QuickGELU()(gate), 0.8477), (triton_kernels.silu_product(gate, up), 1.4609)):
        assert (float(ours.min()), float(ours.max())) == pytest.approx((expected, expected), rel=0.01)
