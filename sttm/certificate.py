"""Certificates of an artifact: how far its answers differ from answers that lose nothing to packing or to FP8."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Certificate:
    """What probe questions found when they were asked in two ways.

    Attributes:
        kl_mean, kl_max: KL divergence over all compared tokens, nats.
        top1_agreement: share of compared tokens whose likeliest next token is the same.
        compared: number of compared distributions.
    """

    kl_mean: float
    kl_max: float
    top1_agreement: float
    compared: int


@dataclass(frozen=True)
class ArithmeticCertificate:
    """What probe questions found about the arithmetic of a run, on one of its videos.

    Attributes:
        reference: the arithmetic that it was compared with, such as `bfloat16`.
        video: content digest of the video that was read and asked about in both.
        kl_mean, kl_max: KL divergence over all compared tokens, nats.
        top1_agreement: share of compared tokens whose likeliest next token is the same.
        compared: number of compared distributions.
    """

    reference: str
    video: str
    kl_mean: float
    kl_max: float
    top1_agreement: float
    compared: int
