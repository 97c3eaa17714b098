"""How much text a model can still take after a video: its positions are numbered, and it was trained on so many."""

from typing import Any

from sttm.engine.answer import ReadyVideo
from sttm.errors import QuestionError
from sttm.models.language_model import LanguageModel


def require_room(model: LanguageModel, video: ReadyVideo, asked_tokens: int, answer_tokens: int) -> None:
    """Check that a question and its answer end within the model's positions.

    Args:
        model: the language model that made the video's cache.
        video: the cache.
        asked_tokens: tokens fed after the video: the question, and the turns before it.
        answer_tokens: longest answer.

    Raises:
        QuestionError: they do not; beyond its positions a model answers with garbage, and no error of its own.
    """
    limit, start = positions_of(model.text.config), max(video.next_positions)
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
