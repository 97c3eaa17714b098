"""Measures how faithful a KV cache is, by probe questions over this cache and over a better one.

A stored cache is compared with the live one that it was packed from, and an FP8 model and its cache with the bfloat16
model and its own. Both are fed the same answers, the greedy ones of the better cache, so that every two distributions
that are compared follow the same tokens. The measure is the Kullback-Leibler divergence KL(better || other) in nats a
token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
        max_kl: largest mean divergence, in nats, of an artifact that is published, and of `model.dtype: fp8` from
            bfloat16. None publishes all artifacts.
    """

    probes: tuple[str, ...] = ("Describe the video.", "What happens first?", "How many objects are there?")
    tokens: int = Field(default=4, ge=1)
    max_kl: float | None = Field(default=0.1, gt=0)


@dataclass(frozen=True)
class ProbeAnswers:
    """The greedy answers to probe questions, and how likely every other token was.

    Attributes:
        questions: token ids of each probe question.
        tokens: int64 [T, B], the answers, T tokens to each of B questions.
        logits: float32 [T, B, V], from which each token was chosen.
    """

    questions: Sequence[Sequence[int]]
    tokens: Tensor
    logits: Tensor


def ask_probes(model: LanguageModel, video: ReadyVideo, probes: Sequence[Sequence[int]], tokens: int) -> ProbeAnswers:
    """Answer probe questions greedily.

    Args:
        model: the language model that made the cache.
        video: the cache, ready on the model's device.
        probes: token ids of each probe question.
        tokens: number of answer tokens for each probe.
    """
    continuation = Continuation(model, video, probes, tokens)
    logits = [continuation.start().clone()]
    while len(logits) < tokens:
        logits.append(continuation.step(logits[-1].argmax(-1)).clone())
    stacked = torch.stack(logits)
    return ProbeAnswers(probes, stacked.argmax(-1), stacked)


def compare(expected: ProbeAnswers, model: LanguageModel, video: ReadyVideo) -> Certificate:
    """Feed answers to another cache or another model, and compare what each finds likely.

    Args:
        expected: the answers of the better cache.
        model: the language model that made `video`.
        video: the cache that is certified, ready on the model's device.
    """
    tokens = expected.tokens
    continuation = Continuation(model, video, expected.questions, len(tokens))
    divergences, agreements = [], []
    for step in range(len(tokens)):
        logits = continuation.step(tokens[step - 1]) if step else continuation.start()
        divergences.append(_divergence(expected.logits[step], logits))
        agreements.append(tokens[step] == logits.argmax(-1))
    kl, same = torch.cat(divergences), torch.cat(agreements)
    return Certificate(float(kl.mean()), float(kl.max()), float(same.float().mean()), len(kl))


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
    return compare(ask_probes(model, live, probes, tokens), model, stored)


def _divergence(better: Tensor, other: Tensor) -> Tensor:
    """KL(better || other), float32 [B], from float32 logits [B, V]. Rounding cannot make it negative."""
    p, q = better.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0).float()
