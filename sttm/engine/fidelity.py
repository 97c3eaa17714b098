"""Measures how faithful a stored KV cache is, by probe questions over the stored cache and over the live prefill.

Both caches are fed the same answers, the greedy ones of the live cache, so that every two distributions that are
compared follow the same tokens. The measure is the Kullback-Leibler divergence KL(live || stored) in nats a token.
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
    """How the certificate of each artifact is made.

    Attributes:
        probes: the probe questions. Without any, artifacts get no certificate.
        tokens: number of answer tokens that are compared for each probe.
        max_kl: largest mean divergence, in nats, of an artifact that is published. None publishes all artifacts.
    """

    probes: tuple[str, ...] = ("Describe the video.", "What happens first?", "How many objects are there?")
    tokens: int = Field(default=4, ge=1)
    max_kl: float | None = Field(default=0.1, gt=0)


def certify(
    model: LanguageModel, live: ReadyVideo, stored: ReadyVideo, probes: Sequence[Sequence[int]], tokens: int
) -> Certificate:
    """Compare a stored cache with the live cache that it was made from.

    Args:
        model: the language model that made the live cache.
        live: the live cache, ready on the model's device.
        stored: the stored cache, ready on the model's device.
        probes: token ids of each probe question.
        tokens: number of answer tokens that are compared for each probe.
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
    """KL(live || stored), float32 [B], from float32 logits [B, V]. Rounding cannot make it negative."""
    p, q = live.double().log_softmax(-1), stored.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0).float()
