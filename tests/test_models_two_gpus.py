"""A model spread over two GPUs computes what it computes on one GPU, from pixels to answers from a stored cache."""

import pytest
import torch
from checkpoints import FAMILIES
from family_setup import HALF, Setup

from sttm.engine.answer import Continuation
from sttm.engine.prefill import PrefillConfig, Prefilled, prefill
from sttm.engine.ready_video import ready
from sttm.kv_cache import KVCache
from sttm.models.language_model import LanguageModel
from sttm.store.kv.file import decode_kv, encode_kv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def gpus(count: int) -> list[torch.device]:
    return [torch.device("cuda", i) for i in range(count)]


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def first_logits(model: LanguageModel, cache: KVCache, questions: list[list[int]]) -> torch.Tensor:
    """Logits after the questions and one more token each, of two of three rows."""
    continuation = Continuation(model, ready(model, cache), questions, room=0)
    first = continuation.start()
    continuation.keep([0, 2])
    return torch.cat([first, continuation.step(first.argmax(-1)[[0, 2]])])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
@pytest.mark.parametrize(
    ("merge_layer", "proportional", "chunk"), [(0, False, None), (2, True, None), (3, False, None), (3, True, 17)]
)
def test_two_gpus_compute_what_one_does(
    name: str, dtype: str, tolerance: float, merge_layer: int, proportional: bool, chunk: int | None
) -> None:
    """Cache, logits and answers are compared, with layers on both GPUs."""
    setup = Setup.of(name, dtype)
    settings = PrefillConfig(merge_layer=merge_layer, proportional_attention=proportional, chunk_tokens=chunk)

    def run(devices: list[torch.device]) -> tuple[Prefilled, torch.Tensor, torch.Tensor]:
        whole = setup.checkpoint.load_model(devices)
        inside = LanguageModel.of(whole)
        assert set(inside.layer_devices) == set(devices)
        result = prefill(inside, setup.family.prompt(whole, setup.inputs), HALF, settings)
        assert tuple(key.device for key in result.cache.keys) == inside.layer_devices
        alone = setup.checkpoint.load_language_model(devices)
        assert set(alone.layer_devices) == set(devices)
        stored = decode_kv(encode_kv(result.cache, "exact").data, device=alone.device)
        live = first_logits(inside, result.cache, setup.questions())
        return result, live, first_logits(alone, stored, setup.questions())

    (one, *logits), (two, *spread_logits) = run(gpus(1)), run(gpus(2))
    assert torch.equal(two.cache.boxes, one.cache.boxes)
    for ours, theirs in zip(two.cache.keys + two.cache.values, one.cache.keys + one.cache.values, strict=True):
        torch.testing.assert_close(ours.to(theirs.device), theirs, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(spread_logits, logits, strict=True):
        assert ours.device == gpus(1)[0]
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert torch.equal(*spread_logits)  # the stored cache answers as the live one


def test_a_ready_video_comes_back_from_host_memory_to_each_layers_gpu() -> None:
    setup = Setup.of("qwen2_vl")
    model = setup.checkpoint.load_language_model(gpus(2))
    video = ready(model, setup.prefill(HALF, proportional_attention=True).cache)
    back = video.to("cpu", pinned=True).to(model.layer_devices)
    assert tuple(key.device for key in back.keys) == model.layer_devices
    for ours, theirs in zip(back.keys + back.values, video.keys + video.values, strict=True):
        assert torch.equal(ours, theirs)
