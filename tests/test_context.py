"""Questions and videos that would run past the model's positions are refused with numbers; what just fits is not."""

from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import FAMILIES
from family_setup import HALF, Setup

from sttm.config import IndexConfig
from sttm.engine.context import QUESTION_TOKENS, positions_of, require_room
from sttm.engine.prefill import PrefillConfig, prefill, require_possible
from sttm.engine.ready_video import ready
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ConfigError, QuestionError, VideoError
from sttm.evaluation.evaluator import Evaluator
from sttm.evaluation.questions import Question, VideoQuestions
from sttm.evaluation.reducers import Reducer, parse_reducers
from sttm.merging import MergeConfig
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.language_model import LanguageModel
from sttm.query.turns import turns_ids

REDUCERS = parse_reducers("sttm", [0.5], IndexConfig())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_position_may_be_used_and_no_more(family: str) -> None:
    setup = Setup.of(family)
    video = ready(setup.model, setup.prefill(HALF).cache)
    left = 4096 - max(video.next_positions)
    assert left > 0
    require_room(setup.model, video, 10, left - 10)
    with pytest.raises(QuestionError, match=rf"takes 11 tokens .* up to {left - 10}, .* 4096 positions, of which"):
        require_room(setup.model, video, 11, left - 10)


def test_turns_of_a_conversation_add_up() -> None:
    setup = Setup.of("qwen2_vl")
    video = ready(setup.model, setup.prefill(HALF).cache)
    first, both = (len(turns_ids(setup.family, turns)) for turns in (["why?"], ["why?", "so " * 300, "why?"]))
    room = 4096 - max(video.next_positions) - first
    require_room(setup.model, video, first, room)
    with pytest.raises(QuestionError, match="ask a shorter question"):
        require_room(setup.model, video, both, room)


def with_positions(setup: Setup, count: int) -> LanguageModel:
    """The language model, as if it was trained on this many positions."""
    text = copy(setup.model.text)
    text.config = copy(text.config)
    text.config.max_position_embeddings = count
    return replace(setup.model, text=text)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["survived", "reassigned"])
@pytest.mark.parametrize("merge_layer", [0, 2])
def test_video_that_leaves_no_room_for_a_question_is_not_prefilled(family: str, rule: str, merge_layer: int) -> None:
    """Both count: the positions in the layers before the merge, and those in the layers behind it."""
    setup, config = Setup.of(family), PrefillConfig(merge_layer=merge_layer, position_rule=rule)
    cache = prefill(setup.model, setup.prompt, HALF, config).cache
    counted = [cache.reduced_next_position] + [cache.next_position] * (merge_layer > 0)
    needed = max(counted) + QUESTION_TOKENS
    fits = with_positions(setup, needed)
    video = ready(fits, prefill(fits, setup.prompt, HALF, config).cache)
    require_room(fits, video, 28, 100)
    message = (
        rf"too_long: the video takes \d+ tokens and {max(counted)} of the model's {needed - 1} .* lower video.max_"
    )
    with pytest.raises(VideoError, match=message):
        prefill(with_positions(setup, needed - 1), setup.prompt, HALF, config)


def test_evaluator_asks_what_fits_behind_the_full_video(qwen2_vl_folder: Path) -> None:
    setup, sampling = Setup.of("qwen2_vl"), SamplingConfig(max_tokens=4)
    evaluator = Evaluator(Checkpoint.open(ModelConfig(path=str(qwen2_vl_folder), dtype="float32")), REDUCERS, sampling)
    start = setup.prompt.next_position
    video = VideoQuestions("v", (Question("Why?", "x", row=1), Question("why? " * 100, "x", row=2)), lambda: None)  # type: ignore[arg-type, return-value]
    evaluator._language_model.text.config.max_position_embeddings = start + QUESTION_TOKENS
    outcome = evaluator.run(video, setup.inputs)
    assert [question.row for question in outcome.asked] == [1]
    assert [(e.row, f"leaves {QUESTION_TOKENS} of" in e.cause) for e in outcome.errors] == [(2, True)]
    evaluator._language_model.text.config.max_position_embeddings -= 1
    outcome = evaluator.run(video, setup.inputs)
    assert (outcome.asked, outcome.outcomes) == ((), ())
    assert [(e.row, "lower video.max_frames" in e.cause) for e in outcome.errors] == [(1, True), (2, True)]


@pytest.mark.parametrize(
    ("merging", "settings", "message"),
    [
        (HALF, {"merge_layer": 4}, r"prefill.merge_layer=4: this model has layers 0 to 3"),
        (HALF, {"merge_layer": -1}, r"prefill.merge_layer=-1"),
        (HALF.model_copy(update={"head_dim": 48}), {}, r"merge.head_dim=48 does not divide this model's 64 channels"),
    ],
)
def test_settings_that_no_video_could_be_prefilled_with_are_refused_without_one(
    qwen2_vl_folder: Path, merging: MergeConfig, settings: dict[str, int], message: str
) -> None:
    setup, config = Setup.of("qwen2_vl"), PrefillConfig(**settings)
    with pytest.raises(ConfigError, match=message):
        require_possible(setup.checkpoint.config.get_text_config(), merging, config)
    with pytest.raises(ConfigError, match=message):
        setup.prefill(merging, **settings)
    with pytest.raises(ConfigError, match=message):
        Evaluator(setup.checkpoint, [Reducer("sttm", None, merging, config)])


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (None, 32768),
        ({"rope_type": "default"}, 32768),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"rope_type": "linear", "factor": 2.0}, 65536),
        ({"rope_type": "llama3", "factor": 8.0}, 32768),
    ],
)
def test_stretched_positions_count(rope: dict[str, object] | None, expected: int) -> None:
    assert positions_of(SimpleNamespace(max_position_embeddings=32768, rope_parameters=rope)) == expected
