"""FP8 arithmetic: how far it rounds, that no row sees another one, and that GPU kernels round like the plain code."""

from typing import Any

import pytest
import torch
from checkpoints import FAMILIES
from family_setup import HALF, Setup
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sttm.engine.answer import Continuation, answer
from sttm.engine.prefill import PrefillConfig, prefill
from sttm.engine.ready_video import ready
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ModelError
from sttm.models import fp8
from sttm.models.fp8 import Fp8Rows, quantise_rows, quantised_quick_gelu, quantised_silu_product, require_fp8
from sttm.models.fp8_linear import Fp8Linear, fp8_blocks, use_fp8
from sttm.models.fused_modules import GatedMLP, QuickGELU, QuickGELUMLP
from sttm.models.language_model import LanguageModel

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
GENERATOR = torch.Generator()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR.manual_seed(seed))


def fp8_linear(linear: nn.Linear) -> Fp8Linear:
    return Fp8Linear(quantise_rows(linear.weight.detach()), linear.bias)


def error_of_rows(found: Tensor, expected: Tensor) -> Tensor:
    return (found.float() - expected).norm(dim=-1) / expected.norm(dim=-1)


def has_fp8() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 50)),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_a_number_is_rounded_by_at_most_one_sixteenth(
    shape: tuple[int, int], exponent: int, dtype: torch.dtype, seed: int
) -> None:
    """e4m3 has three bits behind the point; below 2^-6 codes are 2^-9 apart. No row changes another one's codes."""
    x = (normal(*shape, seed=seed) ** 5 * 2.0**exponent).to(dtype)
    rows = quantise_rows(x)
    assert rows.codes.shape[1] % 16 == 0
    numbers, wide = rows.numbers(), x.float()
    assert not numbers[:, shape[1] :].any()
    off = (numbers[:, : shape[1]] - wide).abs()
    assert (off <= torch.maximum(wide.abs() / 16, rows.scales * 2.0**-10) * (1 + 1e-5)).all()
    for number, row in enumerate(x):
        alone = quantise_rows(row[None])
        assert torch.equal(alone.codes.view(torch.uint8)[0], rows.codes.view(torch.uint8)[number])
        assert alone.scales[0] == rows.scales[number]


def test_rows_of_zeros_stay_zeros_and_a_nan_is_not_hidden() -> None:
    x = torch.zeros(3, 16)
    x[1, 3], x[2, 5] = float("nan"), 1e-38
    numbers = quantise_rows(x).numbers()
    assert torch.equal(numbers[0], torch.zeros(16))
    assert numbers[1].isnan().any()
    assert numbers[2].abs().max() < 1e-30
    with pytest.raises(ValueError, match="Fp8Rows of codes"):
        Fp8Rows(torch.zeros(2, 15).to(fp8.FP8), torch.ones(2, 1), torch.Size([2]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("channels", "out"), [(3584, 512), (1280, 3420), (24, 20), (3420, 1280)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_about_four_percent_off(channels: int, out: int, has_bias: bool, device: str) -> None:
    """Two numbers that are rounded by up to 1/16 make a product that is 3.7 % off in the mean of squares."""
    torch.manual_seed(0)
    linear = nn.Linear(channels, out, bias=has_bias)
    x = normal(2, 9, channels)
    ours = fp8_linear(linear).to(device)
    found = ours(x.to(device, torch.bfloat16)).cpu()
    assert (found.shape, found.dtype) == ((2, 9, out), torch.bfloat16)
    error = error_of_rows(found, linear(x.bfloat16().float()))
    assert error.max() < 0.06
    assert 0.02 < error.mean() < 0.042


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_does_not_depend_on_the_rows_beside_it(device: str) -> None:
    """But for the order of its sum, which is a matter of the kernel that the number of rows asks for."""
    torch.manual_seed(0)
    linear = fp8_linear(nn.Linear(640, 96)).to(device)
    x = (normal(70, 640) * torch.logspace(-4, 4, 70)[:, None]).to(device, torch.bfloat16)
    whole = linear(x)
    for number in (0, 1, 35, 69):
        alone = linear(x[number : number + 1])[0]
        torch.testing.assert_close(alone, whole[number], rtol=0.01, atol=0.01 * float(whole[number].abs().max()))


def test_rounded_rows_give_the_same_product_as_the_numbers_they_come_from() -> None:
    torch.manual_seed(0)
    linear, x = fp8_linear(nn.Linear(64, 48)), normal(2, 5, 64)
    assert torch.equal(linear(quantise_rows(x)), linear(x))


def test_a_gated_mlp_rounds_its_product_once() -> None:
    torch.manual_seed(0)
    mlp: Any = nn.Module()
    mlp.gate_proj, mlp.up_proj = nn.Linear(64, 100, bias=False), nn.Linear(64, 100, bias=False)
    mlp.down_proj = nn.Linear(100, 64, bias=False)
    x, module = normal(3, 64).bfloat16(), GatedMLP(mlp)
    expected = module.float()(x.float())
    use_fp8(module)
    product = nn.functional.silu(module.gate_proj(x)) * module.up_proj(x)
    assert torch.equal(module(x), module.down_proj(product))
    assert error_of_rows(module(x), expected).max() < 0.12


def test_a_vision_mlp_rounds_its_activation_once() -> None:
    torch.manual_seed(0)
    mlp: Any = nn.Module()
    mlp.fc1, mlp.fc2 = nn.Linear(32, 80), nn.Linear(80, 32)
    x, module = normal(7, 32).bfloat16(), QuickGELUMLP(mlp).bfloat16()
    expected = module(x).float()
    use_fp8(module)
    assert torch.equal(module(x), module.fc2(module.act(module.fc1(x))))
    assert error_of_rows(module(x), expected).max() < 0.12


@pytest.mark.parametrize(
    "name",
    [
        *("qwen2_5_vl", "llava_next_video"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_vl", "qwen3_vl", "llava_onevision")),
    ],
)
def test_linear_modules_of_all_blocks_and_no_others_become_fp8(name: str) -> None:
    """The language model alone gets the same weights as inside the whole model."""
    full = Setup.of(name, "fp8").full
    inside = [n for n, m in full.named_modules() if isinstance(m, Fp8Linear)]
    left = {n for n, m in full.named_modules() if type(m) is nn.Linear}
    assert sum("language_model.layers" in n for n in inside) == 4 * 7
    assert len(inside) > 4 * 7
    assert all(".layers." in n or ".blocks." in n for n in inside)
    assert "lm_head" in left
    assert all(n == "lm_head" or "merger" in n or "projector" in n for n in left)
    alone = Setup.of(name, "fp8").checkpoint.load_language_model("cpu")
    theirs = LanguageModel.of(full).text.state_dict()
    for key, tensor in alone.text.state_dict().items():
        assert torch.equal(tensor.float(), theirs[key].float())
        assert tensor.dtype == theirs[key].dtype


@pytest.mark.parametrize(
    ("name", "device"),
    [
        *(("qwen2_5_vl", "cpu"), ("llava_next_video", "cpu")),
        *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in FAMILIES),
    ],
)
def test_answers_in_fp8_are_close_to_those_in_bfloat16(name: str, device: str) -> None:
    logits = []
    for dtype in ("bfloat16", "fp8"):
        setup = Setup.of(name, dtype)
        full = setup.checkpoint.load_model(device)
        model, prompt = LanguageModel.of(full), setup.family.prompt(full, setup.inputs)
        cache = prefill(model, prompt, HALF, PrefillConfig()).cache
        logits.append(Continuation(model, ready(model, cache), setup.questions(), 4).start().double().log_softmax(-1))
    plain, rounded = logits
    assert not torch.equal(plain, rounded)
    assert (plain.exp() * (plain - rounded)).sum(-1).max() < 0.01


def test_a_whole_model_can_be_rounded_later() -> None:
    setup = Setup.of("qwen2_5_vl", "fp8")
    later = setup.checkpoint.load_model("cpu", with_fp8=False)
    assert not any(isinstance(module, Fp8Linear) for module in later.modules())
    setup.checkpoint.use_fp8(later)
    now = setup.full.state_dict()
    for key, tensor in later.state_dict().items():
        assert torch.equal(tensor.float(), now[key].float())
    assert torch.equal(setup.family.prompt(later, setup.inputs).embeds, setup.prompt.embeds)


def test_a_gpu_without_fp8_is_refused_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    require_fp8(torch.device("cpu"))
    with pytest.raises(ModelError, match=r"NVIDIA A100 has no FP8 \(compute capability 8\.0.*model\.dtype=bfloat16"):
        require_fp8(torch.device("cuda"))
    with pytest.raises(ModelError, match="has no FP8"):
        Setup.of("qwen2_5_vl", "fp8").checkpoint.load_model("cuda")
    with pytest.raises(ModelError, match="has no FP8"):
        Setup.of("qwen2_5_vl", "fp8").checkpoint.load_language_model("cuda")


@pytest.mark.gpu
def test_a_gpu_for_which_torch_has_no_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> Tensor:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nand more")

    monkeypatch.setattr(fp8, "product", fail)
    with pytest.raises(ModelError, match=r"cannot multiply FP8 rows .*\(CUBLAS_STATUS_NOT_SUPPORTED\); set"):
        require_fp8(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not has_fp8(), reason="needs a GPU with FP8")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 3584), (7, 18944), (513, 1280), (3, 3420), (5, 100)])
def test_kernels_round_to_the_codes_of_the_plain_code(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = (normal(*shape) ** 3).to(dtype)
    x[0] = 0
    theirs, ours = quantise_rows(x), quantise_rows(x.cuda())
    assert torch.equal(ours.codes.cpu().view(torch.uint8), theirs.codes.view(torch.uint8))
    assert torch.equal(ours.scales.cpu(), theirs.scales)
    wide = torch.cat([x, x], 1).cuda()[:, : shape[1]]  # rows that do not lie next to each other
    assert torch.equal(quantise_rows(wide).codes.view(torch.uint8), ours.codes.view(torch.uint8))


@pytest.mark.gpu
@pytest.mark.skipif(not has_fp8(), reason="needs a GPU with FP8")
@pytest.mark.parametrize("shape", [(1, 18944), (65, 3420), (5, 100)])
def test_the_kernel_with_a_step_before_it_rounds_like_the_steps_in_torch(shape: tuple[int, int]) -> None:
    gate, up = (normal(*shape, seed=seed).mul(3).bfloat16().cuda() for seed in (0, 1))
    for ours, theirs in (
        (quantised_silu_product(gate, up), quantise_rows(nn.functional.silu(gate) * up)),
        (quantised_quick_gelu(gate), quantise_rows(QuickGELU()(gate))),
    ):
        assert torch.equal(ours.codes.view(torch.uint8), theirs.codes.view(torch.uint8))
        assert torch.equal(ours.scales, theirs.scales)


@pytest.mark.gpu
@pytest.mark.skipif(not has_fp8(), reason="needs a GPU with FP8")
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 500])
@pytest.mark.parametrize(("channels", "out"), [(3584, 4608), (18944, 3584), (1280, 3420)])
def test_tensor_cores_multiply_like_the_emulation(rows: int, channels: int, out: int) -> None:
    """They sum with fewer bits than float32. What that costs must stay below the rounding to FP8, 3.7 %."""
    torch.manual_seed(0)
    linear = fp8_linear(nn.Linear(channels, out))
    x = normal(rows, channels).bfloat16()
    emulated = linear(x).float()
    assert error_of_rows(linear.cuda()(x.cuda()).cpu(), emulated).max() < 0.03


@pytest.mark.gpu
@pytest.mark.skipif(not has_fp8(), reason="needs a GPU with FP8")
@pytest.mark.parametrize("name", FAMILIES)
def test_replayed_decode_steps_equal_launched_ones(name: str) -> None:
    setup = Setup.of(name, "fp8")
    model = setup.checkpoint.load_language_model("cuda")
    video = ready(model, setup.prefill(HALF).cache)
    questions, sampling = setup.questions(), SamplingConfig(max_tokens=40)
    launched = Continuation(model, video, questions, 0)
    tokens, steps = launched.start().argmax(-1), []
    for _ in range(40):
        steps.append(tokens.tolist())
        tokens = launched.step(tokens).argmax(-1)
    replayed = Continuation(model, video, questions, 40)
    tokens = replayed.start().argmax(-1)
    for _ in range(4):
        tokens = replayed.step(tokens).argmax(-1)
    assert replayed._graph is not None
    assert answer(model, video, questions, frozenset(), sampling) == [list(row) for row in zip(*steps, strict=True)]


def test_blocks_are_found_by_the_names_of_their_lists() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)]), "mergers": nn.ModuleList([nn.Linear(4, 4)])})
    assert [name for name, _ in fp8_blocks(model)] == ["blocks.0"]
