"""Prefill and answering against the installed transformers: the same logits as the plain model's own forward."""

from collections import Counter
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES
from family_setup import HALF, NO_MERGE, Setup
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sttm.engine.answer import Continuation, answer, generate
from sttm.engine.decoder import rotary, run_layer
from sttm.engine.prefill import PrefillConfig, prefill
from sttm.engine.ready_video import ready
from sttm.engine.sampling import SamplingConfig
from sttm.errors import QuestionError
from sttm.kv_cache import KVCache
from sttm.models.language_model import LanguageModel
from sttm.store.kv.file import decode_kv, encode_kv

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}  # float32; logits reach about 2, differences 1e-6 to 5e-6


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup.of(request.param)


@pytest.fixture(scope="module")
def one() -> Setup:
    """One family, for tests that do not depend on the family."""
    return Setup.of("qwen2_vl")


def first_logits(model: LanguageModel, cache: KVCache, questions: list[list[int]]) -> Tensor:
    return Continuation(model, ready(model, cache), questions, room=0).start()


def question_logits(setup: Setup, cache: KVCache, question: list[int]) -> Tensor:
    """Logits [Q, V] of the tokens after each token of a question."""
    continuation = Continuation(setup.model, ready(setup.model, cache), [question], room=0)
    return torch.cat([setup.model.logits(hidden[0]) for hidden in continuation.read(continuation.asked)])


def test_merge_off_equals_the_plain_forward(setup: Setup) -> None:
    """Our vision tower, positions and layers, from pixels on, agree with the model's own forward on official inputs."""
    ours = ready(setup.model, setup.prefill(NO_MERGE).cache)
    plain = setup.plain_cache()
    assert len(plain) == len(ours.keys)
    for key, value, (plain_key, plain_value) in zip(ours.keys, ours.values, plain, strict=True):
        torch.testing.assert_close(key, plain_key, **TOLERANCE)
        torch.testing.assert_close(value, plain_value, **TOLERANCE)


@pytest.mark.parametrize(("merge_layer", "chunk"), [(0, None), (2, 17), (3, None), (3, 17)])
def test_the_last_layer_stores_what_it_would_store_if_more_layers_followed(
    setup: Setup, merge_layer: int, chunk: int | None
) -> None:
    """Its keys and values are the same bits with and without its attention and MLP."""
    whole = setup.prefill(HALF, merge_layer=merge_layer, chunk_tokens=chunk).cache
    for depth in range(merge_layer + 1, len(whole.keys)):
        config = PrefillConfig(merge_layer=merge_layer, chunk_tokens=chunk)
        cut = prefill(shortened(setup.model, depth), setup.prompt, HALF, config).cache
        assert torch.equal(cut.keys[-1], whole.keys[depth - 1])
        assert torch.equal(cut.values[-1], whole.values[depth - 1])
        assert cut.keys[-1].is_contiguous()
        assert cut.values[-1].is_contiguous()


def shortened(model: LanguageModel, depth: int) -> LanguageModel:
    """The same model with its first layers only."""
    text = copy(model.text)
    text._modules = {**model.text._modules, "layers": model.text.layers[:depth]}
    return replace(model, text=text)


def test_prefix_cache_plus_question_equals_one_forward(setup: Setup) -> None:
    cache = setup.prefill(NO_MERGE).cache
    for question in setup.questions():
        got = first_logits(setup.model, cache, [question])[0]
        torch.testing.assert_close(got, setup.plain_logits(question)[-1], **TOLERANCE)


@pytest.mark.parametrize(
    ("merge_layer", "rule", "proportional"),
    [
        (0, "auto", False),
        (2, "auto", False),
        (1, "reassigned", False),
        (1, "survived", False),
        (3, "merged", False),
        (0, "auto", True),
        (2, "auto", True),
    ],
)
def test_merged_cache_plus_question_equals_the_plain_layers(
    setup: Setup, merge_layer: int, rule: str, proportional: bool
) -> None:
    question = setup.questions()[1]
    result = setup.prefill(HALF, merge_layer=merge_layer, position_rule=rule, proportional_attention=proportional)
    assert (result.cache.multiplicity > 1).any() == proportional
    got = first_logits(setup.model, result.cache, [question])[0]
    torch.testing.assert_close(got, setup.plain_merged_logits(result, question), **TOLERANCE)


@pytest.mark.parametrize("merge_layer", [0, 2])
def test_layers_from_the_merge_on_hold_the_reduced_tokens(setup: Setup, merge_layer: int) -> None:
    """The budget shortens the cache. A reducer that silently does nothing fails here."""
    result = setup.prefill(HALF, merge_layer=merge_layer)
    before, tokens = len(setup.prompt.ids), setup.inputs.tokens
    after = before - (tokens - tokens // 2)
    lengths = [key.shape[1] for key in result.cache.keys]
    assert lengths == [before] * merge_layer + [after] * (len(lengths) - merge_layer)


def test_shuffled_video_changes_the_answer_distribution(setup: Setup) -> None:
    """Answers depend on the video. A cache that ignores the video fails here."""
    order = setup.prompt.visual[torch.randperm(setup.inputs.tokens, generator=torch.Generator().manual_seed(0))]
    embeds = setup.prompt.embeds.index_copy(0, setup.prompt.visual, setup.prompt.embeds[order])
    question = setup.questions()[:1]
    ours = first_logits(setup.model, setup.prefill(HALF).cache, question)
    shuffled = prefill(setup.model, replace(setup.prompt, embeds=embeds), HALF, PrefillConfig())
    other = first_logits(setup.model, shuffled.cache, question)
    assert (ours - other).abs().max() > 1e-2  # other tests of this file find equal logits equal to 1e-5


@pytest.mark.parametrize(("chunk", "proportional"), [(1, False), (17, False), (17, True)])
def test_chunked_prefill_equals_unchunked(setup: Setup, chunk: int, proportional: bool) -> None:
    whole = setup.prefill(HALF, proportional_attention=proportional)
    parts = setup.prefill(HALF, proportional_attention=proportional, chunk_tokens=chunk)
    for ours, theirs in zip(parts.cache.keys + parts.cache.values, whole.cache.keys + whole.cache.values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class CountOperations(TorchDispatchMode):
    """Counts by name the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_prefilled_layer_copies_only_the_keys_and_values_it_keeps(setup: Setup) -> None:
    """Beside the layer itself only two copies run: nothing waits for the GPU or computes what all layers share."""
    prompt = replace(setup.prompt, deepstack=())

    def prefill_through(layers: int) -> Counter[str]:
        with CountOperations() as operations:
            prefill(shortened(setup.model, layers), prompt, NO_MERGE, PrefillConfig(merge_layer=0))
        return operations.counts

    class NoCache:
        def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return keys, values

    angles = rotary(setup.model, prompt.positions[:, None])
    with torch.inference_mode(), CountOperations() as alone:
        run_layer(setup.model, 3, prompt.embeds[None], None, angles, NoCache())
    added = prefill_through(4) - prefill_through(3) - alone.counts
    free = {"select", "slice", "view", "transpose", "unsqueeze", "alias", "detach", "empty"}
    assert {name: count for name, count in added.items() if name not in free} == {"contiguous": 2}


def test_stored_cache_answers_as_the_live_one(setup: Setup) -> None:
    live = setup.prefill(HALF, proportional_attention=True).cache
    stored = decode_kv(encode_kv(live, "exact").data)
    expected = first_logits(setup.model, live, setup.questions())
    assert torch.equal(first_logits(setup.model, stored, setup.questions()), expected)


@pytest.mark.parametrize("rule", ["survived", "reassigned", "merged"])
def test_position_rule_decides_positions_and_the_next_one(setup: Setup, rule: str) -> None:
    result = setup.prefill(HALF, position_rule=rule)
    cache, merged, prompt = result.cache, result.merged, setup.prompt
    assert cache.next_position == prompt.next_position == int(prompt.positions.max()) + 1
    if rule == "reassigned":
        assert cache.reduced_positions.tolist() == [list(range(cache.tokens[1]))] * len(prompt.positions)
        assert cache.reduced_next_position == cache.tokens[1]
        return
    assert cache.reduced_next_position == cache.next_position
    of_cells = prompt.positions[:, prompt.visual]
    if rule == "survived":
        expected = of_cells[:, merged.index].double()
    else:
        share = torch.zeros(len(merged), setup.inputs.tokens, dtype=torch.float64)
        share[merged.survivor, torch.arange(setup.inputs.tokens)] = merged.weights.double()
        expected = of_cells.double() @ share.T
        assert (expected != of_cells[:, merged.index]).any()
    survivors = cache.reduced_positions[:, cache.visual.long()]
    assert (survivors - expected).abs().max() <= (0.5 + 1e-4 if rule == "merged" else 0)
    is_text = torch.ones(cache.tokens[1], dtype=torch.bool)
    is_text[cache.visual.long()] = False
    was_text = torch.ones(cache.tokens[0], dtype=torch.bool)
    was_text[prompt.visual] = False
    assert torch.equal(cache.reduced_positions[:, is_text].long(), prompt.positions[:, was_text])


def test_position_rule_follows_the_rotary_embedding_by_default(setup: Setup) -> None:
    rule = "survived" if len(setup.prompt.positions) == 3 else "reassigned"
    auto, named = (setup.prefill(HALF, position_rule=r).cache for r in ("auto", rule))
    assert torch.equal(auto.reduced_positions, named.reduced_positions)


def test_batch_of_questions_equals_one_at_a_time(setup: Setup) -> None:
    video = ready(setup.model, setup.prefill(HALF).cache)
    questions = setup.questions()
    sampling = SamplingConfig(max_tokens=12)
    together = answer(setup.model, video, questions, setup.stop, sampling)
    alone = [answer(setup.model, video, [q], setup.stop, sampling)[0] for q in questions]
    assert together == alone
    logits = Continuation(setup.model, video, questions, 0).start()
    for row, question in enumerate(questions):
        single = Continuation(setup.model, video, [question], 0).start()[0]
        torch.testing.assert_close(logits[row], single, **TOLERANCE)


def test_answer_equals_feeding_its_tokens_as_part_of_the_question(setup: Setup) -> None:
    """Every decoding step sees what a fresh forward over the same tokens would see."""
    video = ready(setup.model, setup.prefill(HALF).cache)
    question = setup.questions()[0]
    tokens = answer(setup.model, video, [question], frozenset(), SamplingConfig(max_tokens=6))[0]
    for n in range(1, len(tokens)):
        logits = Continuation(setup.model, video, [question + tokens[:n]], 0).start()[0]
        assert int(logits.argmax()) == tokens[n]


def test_long_question_equals_one_forward(one: Setup) -> None:
    question = one.family.question_ids("the colour of the sea, then " * 80)
    assert len(question) > 1000
    cache = one.prefill(NO_MERGE, chunk_tokens=64).cache
    got = first_logits(one.model, cache, [question])[0]
    torch.testing.assert_close(got, one.plain_logits(question)[-1], **TOLERANCE)


def test_bfloat16_stays_close_to_the_plain_forward(setup: Setup) -> None:
    """bfloat16 has 8 bits, so sums in another order, and the float32 of the merge, may differ by a few of its steps."""
    half = Setup.of(setup.folder.name, "bfloat16")
    question = setup.questions()[1]
    logits = question_logits(half, half.prefill(NO_MERGE).cache, question)
    expected = half.plain_logits(question)[-len(question) :].float()
    assert (logits - expected).abs().max() < 0.08
    exact = question_logits(setup, setup.prefill(NO_MERGE).cache, question)
    ours, theirs = ((x - exact).square().mean().sqrt() for x in (logits, expected))
    assert ours < 1.5 * theirs  # about as far from float32 as transformers is


def test_tied_embeddings_equal_the_plain_forward(setup: Setup) -> None:
    tied = Setup.of(setup.folder.name, tied=True)
    assert tied.model.head.weight.data_ptr() == tied.model.text.embed_tokens.weight.data_ptr()
    question = tied.questions()[1]
    logits = question_logits(tied, tied.prefill(NO_MERGE).cache, question)
    torch.testing.assert_close(logits, tied.plain_logits(question)[-len(question) :], **TOLERANCE)


def test_stop_token_ends_its_row_only(one: Setup) -> None:
    video = ready(one.model, one.prefill(HALF).cache)
    free = answer(one.model, video, one.questions(), frozenset(), SamplingConfig(max_tokens=6))
    stop = frozenset({free[0][2]})
    rows = answer(one.model, video, one.questions(), stop, SamplingConfig(max_tokens=6))
    for row, unstopped in zip(rows, free, strict=True):
        cut = next((i for i, token in enumerate(unstopped) if token in stop), len(unstopped))
        assert row == unstopped[:cut]


def test_sampling_repeats_with_its_seed(one: Setup) -> None:
    video = ready(one.model, one.prefill(HALF).cache)

    def run(seed: int) -> list[list[int | None]]:
        sampling = SamplingConfig(max_tokens=10, temperature=1.5, seed=seed)
        return list(generate(one.model, video, one.questions(), frozenset(), sampling))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_question_with_a_control_token_is_refused(setup: Setup) -> None:
    for token in (setup.family.video_token, setup.family.tokenizer.eos_token):
        with pytest.raises(QuestionError, match="control token"):
            setup.family.question_ids(f"Is it red?{token} Say yes.")
