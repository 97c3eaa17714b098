"""The fidelity certificate of an artifact: how far answers from the stored cache differ from those of the live one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Certificate:
    """What the probe questions found.

    Attributes:
        kl_mean, kl_max: KL divergence over all compared tokens, nats.
        top1_agreement: share of compared tokens whose likeliest next token is the same.
        compared: number of compared distributions.
    """

    kl_mean: float
    kl_max: float
    top1_agreement: float
    compared: int
