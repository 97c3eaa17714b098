"""Rounds a model to FP8 and measures, on one video, what that does to answers.

The weights in bfloat16 are there only until they are rounded, so this is done once, with the first video that a
process reads: bfloat16 reads it and answers the probe questions, the model is rounded in place, and FP8 reads the same
video again. Vision tower, merge, prefill and answers all compute in FP8 the second time; packing is not part of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sttm.certificate import Certificate
from sttm.engine.fidelity import ask_probes, compare
from sttm.engine.ready_video import ready
from sttm.kv_cache import KVCache
from sttm.models.checkpoint import Checkpoint
from sttm.models.language_model import LanguageModel


def round_and_compare(
    checkpoint: Checkpoint,
    model: Any,
    read_in: Callable[[], KVCache],
    probes: Sequence[Sequence[int]],
    tokens: int,
) -> Certificate:
    """Round a model to FP8 in place, and compare its answers with those before.

    Args:
        checkpoint: the checkpoint of the model.
        model: the whole model in bfloat16.
        read_in: reads a video with the model as it is at the time of the call.
        probes: token ids of each probe question.
        tokens: number of answer tokens that are compared for each probe.

    Raises:
        VideoError: the video cannot be read. Before rounding, the model stays in bfloat16.
    """
    language_model = LanguageModel.of(model)
    expected = ask_probes(language_model, ready(language_model, read_in()), probes, tokens)
    checkpoint.use_fp8(model)
    torch.cuda.empty_cache()
    return compare(expected, language_model, ready(language_model, read_in()))
