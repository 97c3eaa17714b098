"""Where the parts of a model go that is spread over several GPUs. test_models_two_gpus checks its results."""

from copy import deepcopy

import pytest
import torch
from checkpoints import FAMILIES
from family_setup import HALF, Setup
from hypothesis import given
from hypothesis import strategies as st

from sttm.engine.prefill import PrefillConfig, prefill
from sttm.errors import ModelError
from sttm.models.language_model import LanguageModel
from sttm.models.placement import as_devices, device_map, first_gpus, spread

CPU, META = torch.device("cpu"), torch.device("meta")


def gpus(count: int) -> list[torch.device]:
    return [torch.device("cuda", i) for i in range(count)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 7), st.integers(0, 30), st.integers(0, 30))
def test_layers_lie_in_contiguous_blocks_with_the_fullest_as_empty_as_can_be(
    sizes: list[int], count: int, first: int, last: int
) -> None:
    devices = gpus(min(count, len(sizes)))
    of_layers = spread(sizes, devices, first, last)

    def fullest(of_layers: tuple[torch.device, ...]) -> int:
        loads = [sum(s for s, d in zip(sizes, of_layers, strict=True) if d == device) for device in devices]
        loads[0] += first
        loads[-1] += last
        return max(loads)

    assert [d for i, d in enumerate(of_layers) if i == 0 or of_layers[i - 1] != d] == devices
    for i in range(1, len(sizes)):  # moving a border between two blocks by one layer makes nothing better
        for moved in (i - 1, i):
            other = list(of_layers)
            other[moved] = of_layers[2 * i - 1 - moved]
            if [d for j, d in enumerate(other) if j == 0 or other[j - 1] != d] == devices:
                assert fullest(tuple(other)) >= fullest(of_layers)


def test_equal_layers_are_shared_out_around_what_else_lies_on_the_first_and_last_gpu() -> None:
    assert [spread([10] * 9, gpus(3), 20, 10).count(device) for device in gpus(3)] == [2, 4, 3]


def test_more_gpus_than_layers_are_refused() -> None:
    with pytest.raises(ModelError, match="5 GPUs for a model of 4 layers; set gpus_per_model to 4"):
        spread([1] * 4, gpus(5))


def test_more_gpus_than_this_process_sees_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert first_gpus(2) == tuple(gpus(2))
    with pytest.raises(ModelError, match="gpus_per_model is 3, but this process sees 2"):
        first_gpus(3)
    with pytest.raises(ModelError, match="at least 1"):
        first_gpus(0)


def test_without_a_gpu_the_cpu_takes_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert first_gpus(4) == (CPU,)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_of_a_model_has_its_place(name: str, tied: bool) -> None:
    model = (Setup.of(name, tied=True) if tied else Setup.of(name)).full
    places = device_map(model, (CPU, META))

    def place(tensor: str) -> torch.device:
        (found,) = {places[part] for part in places if tensor == part or tensor.startswith(part + ".")}
        return found

    for tensor, _ in [*model.named_parameters(), *model.named_buffers()]:
        at_end = tensor == "model.language_model.norm.weight" or tensor == "lm_head.weight"
        if not tensor.startswith("model.language_model.layers."):
            assert place(tensor) == (META if at_end else CPU)
    assert place("lm_head.weight") == (CPU if tied else META)
    assert place("model.language_model.layers.3.mlp.up_proj.weight") == META


@pytest.mark.parametrize("name", FAMILIES)
def test_loading_puts_every_weight_in_its_place_and_leaves_no_hook(name: str) -> None:
    """The `meta` device stands for a second GPU: it holds shapes only, and refuses to compute with other devices."""
    setup = Setup.of(name)
    whole = setup.checkpoint.load_model((CPU, META))
    assert not any(hasattr(module, "_hf_hook") for module in whole.modules())
    places = device_map(whole, (CPU, META))
    for (tensor, weight), expected in zip(whole.named_parameters(), setup.full.parameters(), strict=True):
        (place,) = {places[part] for part in places if tensor == part or tensor.startswith(part + ".")}
        assert weight.device == place
        assert weight.is_meta or torch.equal(weight, expected)
    alone = setup.checkpoint.load_language_model((CPU, META))
    devices = alone.layer_devices
    assert devices == tuple(sorted(devices, key=(CPU, META).index))
    assert (alone.device, devices[0], devices[-1]) == (CPU, CPU, META)
    assert alone.text.norm.weight.device == alone.head.weight.device == META


@pytest.mark.parametrize("merge_layer", [0, 1, 2])
@pytest.mark.parametrize(("proportional", "chunk"), [(False, None), (True, None), (True, 17)])
@pytest.mark.parametrize("name", FAMILIES)
def test_all_that_a_layer_needs_follows_to_its_device(
    name: str, merge_layer: int, proportional: bool, chunk: int | None
) -> None:
    """Layers 2 and 3 are on the `meta` device, which refuses to compute with anything that was left behind."""
    setup = Setup.of(name)
    text = deepcopy(setup.model.text)
    for part in (*text.layers[2:], text.norm):
        part.to(META)
    spread_model = LanguageModel(text, setup.model.head)
    settings = {"merge_layer": merge_layer, "proportional_attention": proportional, "chunk_tokens": chunk}
    cache = prefill(spread_model, setup.prompt, HALF, PrefillConfig(**settings)).cache
    expected = setup.prefill(HALF, **settings).cache
    assert [key.device for key in (*cache.keys, *cache.values)] == [CPU, CPU, META, META] * 2
    assert [key.shape for key in cache.keys] == [key.shape for key in expected.keys]
    for ours, theirs in zip(cache.keys[:2], expected.keys[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_one_device_or_several() -> None:
    assert as_devices("cpu") == as_devices(CPU) == (CPU,)
    assert as_devices([CPU, META]) == (CPU, META)
