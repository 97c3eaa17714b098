"""Prefill and answering against the installed transformers: the same logits as the plain model's own forward."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sttm.engine.answer import Continuation, SamplingConfig, answer, generate, ready
from sttm.engine.prefill import PrefillConfig, Prefilled, prefill
from sttm.kv_cache import KVCache
from sttm.merging import MergeConfig
from sttm.models.base import Family, Prompt
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.language_model import LanguageModel

NO_MERGE = MergeConfig(method="none")
HALF = MergeConfig(budget=0.5)
QUESTIONS = ("What is it?", "the colour of the sea, please?", "Why")


class Setup:
    """One checkpoint and one video, loaded once."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint.open(ModelConfig(path=str(folder), dtype="float32"))
        self.family: Family = self.checkpoint.family()
        self.full = self.checkpoint.load_model("cpu")
        self.model = LanguageModel.of(self.full)
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 255, (8, 112, 140, 3), dtype=np.uint8)
        frames[4:] = frames[:4] // 2 + frames[3] // 2  # something to merge
        self.inputs = self.family.preprocess(frames, np.arange(8) / 2.0)
        self.prompt: Prompt = self.family.prompt(self.full, self.inputs)
        self.stop = self.family.stop_ids(self.checkpoint.generation_config)

    def prefill(self, merging: MergeConfig, **settings: object) -> Prefilled:
        return prefill(self.model, self.prompt, merging, PrefillConfig(**settings))  # type: ignore[arg-type]

    def questions(self) -> list[list[int]]:
        return [self.family.question_ids(q) for q in QUESTIONS]

    def plain_logits(self, question: list[int]) -> Tensor:
        """The plain model's own forward over prefix and question, given our positions; [L + Q, V]."""
        ids = torch.cat([self.prompt.ids, torch.tensor(question, dtype=torch.long)])
        start = self.prompt.next_position
        after = torch.arange(start, start + len(question)).expand(len(self.prompt.positions), -1)
        positions = torch.cat([self.prompt.positions, after], dim=1)
        with torch.inference_mode():
            embeds = self.full.get_input_embeddings()(ids)
            embeds[: len(self.prompt.ids)] = self.prompt.embeds
            out = self.full.model.language_model(
                inputs_embeds=embeds[None], position_ids=positions[:, None] if len(positions) == 3 else positions
            )
            return self.full.lm_head(out.last_hidden_state)[0]


@pytest.fixture(scope="module")
def setup(qwen2_vl_folder: Path) -> Setup:
    return Setup(qwen2_vl_folder)


def first_logits(model: LanguageModel, cache: KVCache, questions: list[list[int]]) -> Tensor:
    return Continuation(model, ready(model, cache), questions, room=0).start()


def test_merge_off_equals_the_plain_forward(setup: Setup) -> None:
    result = setup.prefill(NO_MERGE)
    expected = setup.plain_logits([])
    torch.testing.assert_close(setup.model.logits(result.hidden), expected, rtol=1e-4, atol=1e-4)


def test_prefix_embeddings_equal_the_models_own(setup: Setup) -> None:
    """The visual features in the prompt are those that the model's own forward computes from the official inputs."""
    frames = np.random.default_rng(1).integers(0, 255, (6, 84, 84, 3), dtype=np.uint8)
    inputs = setup.family.preprocess(frames, np.arange(6.0))
    official = setup.family.processor(
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt"
    )
    prompt = setup.family.prompt(setup.full, inputs)
    with torch.inference_mode():
        plain = setup.full(
            input_ids=prompt.ids[None],
            position_ids=prompt.positions[:, None],
            pixel_values_videos=official["pixel_values_videos"],
            video_grid_thw=official["video_grid_thw"],
        ).logits[0]
    result = prefill(setup.model, prompt, NO_MERGE, PrefillConfig())
    torch.testing.assert_close(setup.model.logits(result.hidden), plain, rtol=1e-4, atol=1e-4)


def test_prefix_cache_plus_question_equals_one_forward(setup: Setup) -> None:
    cache = setup.prefill(NO_MERGE).cache
    for question in setup.questions():
        got = first_logits(setup.model, cache, [question])[0]
        torch.testing.assert_close(got, setup.plain_logits(question)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merge_layer", [0, 1, 2, 3])
def test_cached_merged_prefix_equals_a_prefill_that_includes_the_question(setup: Setup, merge_layer: int) -> None:
    """Merged prefix and question in one sequence, layer by layer, give the logits that the cache gives."""
    question = setup.questions()[1]
    prefix = setup.prefill(HALF, merge_layer=merge_layer)
    p, n = setup.prompt, len(question)
    after = torch.arange(p.next_position, p.next_position + n).expand(3, -1)
    with_question = replace(
        p,
        ids=torch.cat([p.ids, torch.tensor(question)]),
        embeds=torch.cat([p.embeds, setup.model.text.embed_tokens(torch.tensor(question))]),
        positions=torch.cat([p.positions, after], dim=1),
        next_position=p.next_position + n,
    )
    whole = prefill(setup.model, with_question, HALF, PrefillConfig(merge_layer=merge_layer))
    got = first_logits(setup.model, prefix.cache, [question])[0]
    torch.testing.assert_close(got, setup.model.logits(whole.hidden[-1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merge_layer", [0, 2])
def test_layers_from_the_merge_on_hold_the_reduced_tokens(setup: Setup, merge_layer: int) -> None:
    result = setup.prefill(HALF, merge_layer=merge_layer)
    before, after = len(setup.prompt.ids), len(setup.prompt.ids) - setup.inputs.tokens // 2
    lengths = [key.shape[1] for key in result.cache.keys]
    assert lengths == [before] * merge_layer + [after] * (len(lengths) - merge_layer)


def test_shuffled_video_changes_the_answer_distribution(setup: Setup) -> None:
    shuffled = replace(
        setup.prompt,
        embeds=setup.prompt.embeds.index_copy(0, setup.prompt.visual, setup.prompt.embeds[setup.prompt.visual.flip(0)]),
    )
    question = setup.questions()[:1]
    ours = first_logits(setup.model, setup.prefill(HALF).cache, question)
    other = first_logits(setup.model, prefill(setup.model, shuffled, HALF, PrefillConfig()).cache, question)
    assert (ours - other).abs().max() > 100 * 1e-4  # far beyond the tolerance of the equalities here


@pytest.mark.parametrize("chunk", [1, 17, 64])
def test_chunked_prefill_equals_unchunked(setup: Setup, chunk: int) -> None:
    whole, parts = setup.prefill(HALF), setup.prefill(HALF, chunk_tokens=chunk)
    torch.testing.assert_close(parts.hidden, whole.hidden, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(parts.cache.keys, whole.cache.keys, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["survived", "reassigned", "merged"])
def test_position_rule_decides_positions_and_the_next_one(setup: Setup, rule: str) -> None:
    cache = setup.prefill(HALF, position_rule=rule).cache
    survivors = cache.reduced_positions[:, cache.visual.long()]
    if rule == "reassigned":
        assert cache.reduced_positions.tolist() == [list(range(cache.tokens[1]))] * 3
        assert cache.reduced_next_position == cache.tokens[1]
        return
    assert cache.reduced_next_position == cache.next_position
    first_cells = setup.prompt.positions[:, setup.prompt.visual][:, setup.prefill(HALF).merged.index]
    same = bool((survivors == first_cells).all())
    assert same == (rule == "survived")


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
        torch.testing.assert_close(logits[row], single, rtol=1e-4, atol=1e-4)


def test_answer_equals_feeding_its_tokens_as_part_of_the_question(setup: Setup) -> None:
    """Every decoding step sees what a fresh forward over the same tokens would see."""
    video = ready(setup.model, setup.prefill(HALF).cache)
    question = setup.questions()[0]
    tokens = answer(setup.model, video, [question], frozenset(), SamplingConfig(max_tokens=8))[0]
    for n in range(1, len(tokens)):
        logits = Continuation(setup.model, video, [question + tokens[:n]], 0).start()[0]
        assert int(logits.argmax()) == tokens[n]


def test_stop_token_ends_its_row_only(setup: Setup) -> None:
    video = ready(setup.model, setup.prefill(HALF).cache)
    free = answer(setup.model, video, setup.questions(), frozenset(), SamplingConfig(max_tokens=6))
    stop = frozenset({free[0][2]})
    rows = answer(setup.model, video, setup.questions(), stop, SamplingConfig(max_tokens=6))
    for row, unstopped in zip(rows, free, strict=True):
        cut = next((i for i, token in enumerate(unstopped) if token in stop), len(unstopped))
        assert row == unstopped[:cut]


def test_sampling_repeats_with_its_seed(setup: Setup) -> None:
    video = ready(setup.model, setup.prefill(HALF).cache)

    def run(seed: int) -> list[list[int | None]]:
        sampling = SamplingConfig(max_tokens=10, temperature=1.5, seed=seed)
        return list(generate(setup.model, video, setup.questions(), frozenset(), sampling))

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("tied", [False, True])
def test_language_model_alone_equals_the_one_inside(tmp_path: Path, tied: bool) -> None:
    from checkpoints import write_qwen2_vl

    checkpoint = Checkpoint.open(ModelConfig(path=str(write_qwen2_vl(tmp_path / "q", tied=tied)), dtype="float32"))
    full = LanguageModel.of(checkpoint.load_model("cpu"))
    alone = checkpoint.load_language_model("cpu")
    assert not hasattr(alone.text, "visual")
    assert torch.equal(alone.head.weight, full.head.weight)
    for (name, ours), (their_name, theirs) in zip(
        alone.text.named_parameters(), full.text.named_parameters(), strict=True
    ):
        assert name == their_name
        assert torch.equal(ours, theirs)
    positions = torch.arange(9).expand(3, 1, -1)
    hidden = torch.zeros(1, 9, 64)
    for ours, theirs in zip(
        alone.text.rotary_emb(hidden, positions), full.text.rotary_emb(hidden, positions), strict=True
    ):
        assert torch.equal(ours, theirs)
