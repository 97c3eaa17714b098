"""A question that would run past the model's positions is refused, with numbers; one that just fits is not."""

from types import SimpleNamespace

import pytest
from checkpoints import FAMILIES
from family_setup import HALF, Setup

from sttm.engine.answer import ready
from sttm.engine.context import positions_of, require_room
from sttm.engine.conversation import Conversation
from sttm.engine.sampling import SamplingConfig
from sttm.errors import QuestionError


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
    talk = Conversation(setup.model, video, setup.family, frozenset())
    for _ in talk.ask("why? " * 300, SamplingConfig(max_tokens=1)):
        pass
    asked = len(setup.family.question_ids("why? " * 300))
    room = 4096 - max(video.next_positions) - asked
    with pytest.raises(QuestionError, match="ask a shorter question"):
        next(talk.ask("why?", SamplingConfig(max_tokens=room)))
    assert list(talk.ask("why?", SamplingConfig(max_tokens=2)))  # a refused turn leaves no trace


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
