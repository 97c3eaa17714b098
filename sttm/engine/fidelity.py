"""How faithful a stored KV cache is: probe questions over the decoded file against the live prefill.

Both caches are led along the same answers (greedy on the live one), so that every compared distribution has the same
past. Kullback-Leibler divergence in nats a token, of the stored from the live distribution.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sttm.certificate import Certificate
from sttm.engine.answer import Continuation
from sttm.engine.ready_video import ReadyVideo
from sttm.models.language_model import LanguageModel
from sttm.settings import Settings


class FidelityConfig(Settings):
    """The certificate that every artifact carries.

    Attributes:
        probes: questions asked; none turns the certificate off.
        tokens: answer tokens compared a probe.
        max_kl: an artifact whose mean divergence is larger is not published; None publishes all.
    """

    probes: tuple[str, ...] = ("Describe the video.", "What happens first?", "How many objects are there?")
    tokens: int = Field(default=4, ge=1)
    max_kl: float | None = Field(default=0.1, gt=0)


def certify(
    model: LanguageModel, live: ReadyVideo, stored: ReadyVideo, probes: Sequence[Sequence[int]], tokens: int
) -> Certificate:
    """Compare a stored cache with the live one it was made of.

    Args:
        model: the language model that made them.
        live, stored: ready on the model's device.
        probes: token ids of each probe question.
        tokens: answer tokens compared a probe.
    """
    pair = [Continuation(model, video, probes, tokens) for video in (live, stored)]
    logits = [continuation.start() for continuation in pair]
    divergences, agreements = [], []
    for step in range(tokens):
        divergences.append(_divergence(*logits))
        agreements.append(logits[0].argmax(-1) == logits[1].argmax(-1))
        if step + 1 < tokens:
            chosen = logits[0].argmax(-1)
            logits = [continuation.step(chosen) for continuation in pair]
    kl, same = torch.cat(divergences), torch.cat(agreements)
    return Certificate(float(kl.mean()), float(kl.max()), float(same.float().mean()), len(kl))


def _divergence(live: Tensor, stored: Tensor) -> Tensor:
    """KL(live || stored) of float32 logits [B, V], float32 [B], never below zero by rounding."""
    p, q = live.double().log_softmax(-1), stored.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0).float()
