"""Composed caches: their keys stand at the right positions, and the cost of having been made apart is measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES
from family_setup import HALF, NO_MERGE, Setup

from sttm.engine.answer import Continuation
from sttm.engine.compose import compose, opening_tokens
from sttm.engine.prefill import PrefillConfig, prefill
from sttm.engine.ready_video import ready
from sttm.kv_cache import KVCache
from sttm.merging import MergeConfig
from sttm.models.base import Prompt
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.language_model import LanguageModel
from sttm.synthetic import questions, render, sample_scenes


def joined(first: Prompt, second: Prompt, cache: KVCache) -> Prompt:
    """The prompt of both videos one after the other. `cache` is the cache of the second video."""
    cut, length = opening_tokens(cache), len(first.ids)
    shift = first.next_position - int(second.positions[:, cut].max())
    return replace(
        first,
        ids=torch.cat([first.ids, second.ids[cut:]]),
        embeds=torch.cat([first.embeds, second.embeds[cut:]]),
        positions=torch.cat([first.positions, second.positions[:, cut:] + shift], dim=1),
        next_position=second.next_position + shift,
        visual=torch.cat([first.visual, second.visual - cut + length]),
        grid=(first.grid[0] + second.grid[0], *first.grid[1:]),
        frame_seconds=torch.cat([first.frame_seconds, second.frame_seconds]),
        deepstack=tuple(torch.cat(levels) for levels in zip(first.deepstack, second.deepstack, strict=True)),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_moved_keys_stand_where_a_joint_prefill_puts_them(family: str) -> None:
    """Composition is exact in the first layer, before which no token has attended to any other."""
    setup = Setup.of(family)
    other = setup.family.preprocess(255 - setup.pixels, np.arange(len(setup.pixels)) / 2.0)
    second = setup.family.prompt(setup.full, other)
    caches = [setup.prefill(NO_MERGE).cache, prefill(setup.model, second, NO_MERGE, PrefillConfig()).cache]
    ours = compose(setup.model, caches)
    joint = prefill(setup.model, joined(setup.prompt, second, caches[1]), NO_MERGE, PrefillConfig())
    theirs = ready(setup.model, joint.cache)
    assert ours.next_positions == theirs.next_positions
    torch.testing.assert_close(ours.keys[0], theirs.keys[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.values[0], theirs.values[0], rtol=1e-4, atol=1e-4)
    assert [k.shape for k in ours.keys] == [k.shape for k in theirs.keys]


def test_one_video_is_itself_and_both_change_the_answer() -> None:
    setup = Setup.of("qwen2_vl")
    cache = setup.prefill(HALF).cache
    one, alone = compose(setup.model, [cache]), ready(setup.model, cache)
    assert all(map(torch.equal, one.keys, alone.keys))
    assert one.next_positions == alone.next_positions
    question = setup.questions()[:1]
    twice = Continuation(setup.model, compose(setup.model, [cache, cache]), question, 0).start()
    assert (twice - Continuation(setup.model, alone, question, 0).start()).abs().max() > 1e-3


def test_caches_of_different_recipes_are_refused() -> None:
    setup = Setup.of("qwen2_vl")
    with pytest.raises(ValueError, match="index them with one recipe"):
        compose(setup.model, [setup.prefill(HALF).cache, setup.prefill(HALF, merge_layer=0).cache])


@pytest.mark.slow
def test_loss_of_composition_on_the_built_in_model() -> None:
    """Questions about one of two synthetic clips: answers from composed caches against those from a joint prefill."""
    checkpoint = Checkpoint.open(ModelConfig(path="tiny", dtype="float32"))
    family, full = checkpoint.family(), checkpoint.load_model("cpu")
    model = LanguageModel.of(full)
    scenes = list(sample_scenes(seed=1_000_000_000, count=16, frames=8, size=224))
    clips = render(scenes).numpy()
    prompts = [family.prompt(full, family.preprocess(clip, np.arange(8) / 2.0)) for clip in clips]
    for merging in (NO_MERGE, MergeConfig(budget=0.3)):
        divergences, agreed = [], []
        caches = [prefill(model, prompt, merging, PrefillConfig()).cache for prompt in prompts]
        for at in range(0, len(scenes), 2):
            asked = [family.question_ids(q.text) for scene in scenes[at : at + 2] for q in questions(scene)]
            joint = joined(prompts[at], prompts[at + 1], caches[at + 1])
            together = ready(model, prefill(model, joint, merging, PrefillConfig()).cache)
            logits = [Continuation(model, v, asked, 0).start() for v in (together, compose(model, caches[at : at + 2]))]
            p, q = (x.double().log_softmax(-1) for x in logits)
            divergences.append((p.exp() * (p - q)).sum(-1))
            agreed.append(p.argmax(-1) == q.argmax(-1))
        kl, same = torch.cat(divergences), torch.cat(agreed).float()
        print(
            f"{merging.method} {merging.budget}: {len(kl)} questions, KL {kl.mean():.4f}, same answer {same.mean():.3f}"
        )
        assert same.mean() > 0.5
