"""Checks that a question and its answer fit behind a video within the positions that a model was trained on.

Beyond these positions a model raises no error and generates garbage.
"""

from typing import Any

from sttm.engine.ready_video import ReadyVideo
from sttm.errors import QuestionError, VideoError
from sttm.models.language_model import LanguageModel

QUESTION_TOKENS = 128  # of a question with its answer; a video that leaves less room is not stored


def require_room_for_questions(config: Any, tokens: int, next_position: int, cure: str) -> None:
    """Check that questions can follow a video, before it is prefilled.

    Args:
        config: the config of the text model.
        tokens: number of tokens of the prefix that ends with the video.
        next_position: first free position after the prefix.
        cure: what the user can do if there is too little room; it ends the error's message.

    Raises:
        VideoError: with code `too_long`, if fewer than `QUESTION_TOKENS` positions are left.
    """
    limit = positions_of(config)
    if next_position + QUESTION_TOKENS > limit:
        raise VideoError(
            "too_long",
            f"the video takes {tokens} tokens and {next_position} of the model's {limit} positions, which leaves fewer "
            f"than {QUESTION_TOKENS} for a question and its answer: {cure}",
        )


def require_room(model: LanguageModel, video: ReadyVideo, asked_tokens: int, answer_tokens: int) -> None:
    """Check that a question and its answer fit into the model's positions.

    Args:
        model: the language model that made the video's cache.
        video: the cache.
        asked_tokens: tokens fed after the video: the question, and the turns before it.
        answer_tokens: most tokens of the answer.

    Raises:
        QuestionError: they do not fit.
    """
    limit = positions_of(model.text.config)
    start = max(
        video.next_positions[0 if video.merge_layer else 1 :]
    )  # if merged before layer 0, no layer holds all tokens
    if start + asked_tokens + answer_tokens > limit:
        raise QuestionError(
            f"the question takes {asked_tokens} tokens and its answer up to {answer_tokens}, but the model has "
            f"{limit} positions, of which the video takes {start}: ask a shorter question, or for fewer answer tokens"
        )


def positions_of(config: Any) -> int:
    """Number of positions that a text model was trained on, multiplied where its config stretches RoPE."""
    known, rope = int(config.max_position_embeddings), getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("linear", "dynamic", "yarn"):
        return known
    return max(known, int((rope.get("original_max_position_embeddings") or known) * rope.get("factor", 1.0)))
