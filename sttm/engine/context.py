"""How much text a model can still take after a video: its positions are numbered, and it was trained on so many.

Beyond its positions a model answers with garbage, and no error of its own.
"""

from typing import Any

from sttm.engine.ready_video import ReadyVideo
from sttm.errors import QuestionError, VideoError
from sttm.models.language_model import LanguageModel

QUESTION_TOKENS = 128  # a question and its answer; a video that leaves less room is not worth storing


def require_room_for_questions(config: Any, tokens: int, next_position: int, cure: str) -> None:
    """Check that questions can follow a video, before it is prefilled.

    Args:
        config: the text model's.
        tokens: of the video's prefix.
        next_position: the first one free after it.
        cure: what to do about it.

    Raises:
        VideoError: `too_long`: fewer than `QUESTION_TOKENS` positions are left.
    """
    limit = positions_of(config)
    if next_position + QUESTION_TOKENS > limit:
        raise VideoError(
            "too_long",
            f"the video takes {tokens} tokens and {next_position} of the model's {limit} positions, which leaves fewer "
            f"than {QUESTION_TOKENS} for a question and its answer: {cure}",
        )


def require_room(model: LanguageModel, video: ReadyVideo, asked_tokens: int, answer_tokens: int) -> None:
    """Check that a question and its answer end within the model's positions.

    Args:
        model: the language model that made the video's cache.
        video: the cache.
        asked_tokens: tokens fed after the video: the question, and the turns before it.
        answer_tokens: longest answer.

    Raises:
        QuestionError: they do not.
    """
    limit = positions_of(model.text.config)
    start = max(video.next_positions[0 if video.merge_layer else 1 :])  # merged before layer 0, none holds all tokens
    if start + asked_tokens + answer_tokens > limit:
        raise QuestionError(
            f"the question takes {asked_tokens} tokens and its answer up to {answer_tokens}, but the model has "
            f"{limit} positions, of which the video takes {start}: ask a shorter question, or for fewer answer tokens"
        )


def positions_of(config: Any) -> int:
    """Positions that a text model knows, with the stretching of RoPE that its config may ask for."""
    known, rope = int(config.max_position_embeddings), getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("linear", "dynamic", "yarn"):
        return known
    return max(known, int((rope.get("original_max_position_embeddings") or known) * rope.get("factor", 1.0)))
