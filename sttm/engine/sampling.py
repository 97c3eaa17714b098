"""Chooses the next token of each row. Rows are independent: the token of a row depends on no other row.

Shapes: B rows, V vocabulary.
"""

import random
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from sttm.errors import ConfigError
from sttm.settings import Settings

_GREEDY_BELOW = 1e-4  # temperature below which float32 cannot represent the other tokens' chances


class SamplingConfig(Settings):
    """How the next token is chosen.

    Attributes:
        max_tokens: longest answer, in tokens.
        temperature: divides the logits before sampling. 0, or less than 0.0001, takes the likeliest token (greedy).
        top_p: tokens are sampled from the likeliest ones that together have this probability.
        seed: makes sampling repeatable; None draws a new seed.
        stop: texts that end an answer and are not part of it.
    """

    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def checked(cls, **settings: float | None) -> Self:
        """From what a person gave.

        Raises:
            ConfigError: a value is out of range.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            causes = [f"{e['loc'][0]} {e['input']}: {e['msg']}" for e in error.errors()]
            raise ConfigError("; ".join(causes)) from None


class Sampler:
    """Picks the next token of each row. Each row has its own settings and random numbers.

    Args:
        configs: the settings of each row.
    """

    def __init__(self, configs: Sequence[SamplingConfig]) -> None:
        self._configs = configs
        self._random = [random.Random(config.seed) for config in configs]  # noqa: S311 (not for secrets)

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """The next token of each row.

        Args:
            logits: float32 [B, V].
            rows: for each row of `logits`, the number of its settings.

        Returns:
            int64 [B].
        """
        tokens = logits.argmax(-1)
        drawn = [at for at, row in enumerate(rows) if self._configs[row].temperature >= _GREEDY_BELOW]
        if drawn:
            tokens[drawn] = self._draw(logits[drawn], [rows[at] for at in drawn])
        return tokens

    def _draw(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        configs = [self._configs[row] for row in rows]
        temperature = logits.new_tensor([[c.temperature] for c in configs])
        top_p = logits.new_tensor([[c.top_p] for c in configs])
        draws = logits.new_tensor([[self._random[row].random()] for row in rows])
        # The largest logit becomes 0, so the division cannot overflow.
        scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
        chances, ids = scaled.softmax(-1).sort(-1, descending=True)
        sums = chances.cumsum(-1)
        # A logit of NaN must not become an index out of range, after which a GPU fails every later call.
        last = ((sums - chances <= top_p).sum(-1, keepdim=True) - 1).clamp_min(0)
        chosen = torch.searchsorted(sums, draws * sums.gather(1, last), right=True)
        return ids.gather(1, torch.minimum(chosen, last))[:, 0]
