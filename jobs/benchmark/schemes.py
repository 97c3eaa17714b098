"""Compare the answers from caches stored with each KV scheme with the answers from the cache before storing."""

import json
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
import typer

from jobs.benchmark.store import random_cache
from jobs.benchmark.timing import show
from jobs.command import ConfigOption, SetOption
from jobs.config import JobConfig
from sttm.certificate import Certificate
from sttm.config import load_config
from sttm.engine.fidelity import certify
from sttm.engine.prefill import prefill
from sttm.engine.ready_video import ready
from sttm.models.checkpoint import Checkpoint
from sttm.models.language_model import LanguageModel
from sttm.store.kv.file import decode_kv, encode_kv
from sttm.store.kv.scheme import SCHEMES
from sttm.synthetic import HELD_OUT_SEED, questions, render, sample_scenes


def bench_schemes(
    config: ConfigOption = "tiny",
    set_: SetOption = None,
    clips: Annotated[int, typer.Option(min=1, help="number of held-out synthetic clips")] = 16,
) -> None:
    """Compare answers from caches stored with each KV scheme with answers from the cache before storing.

    The questions are those of the clips. It runs on the CPU. Example:

        python -m jobs.bench schemes --clips 12 --set merge.budget=0.5
    """
    settings = load_config(JobConfig, config, set_ or [])
    checkpoint = Checkpoint.open(settings.model)
    family, model = checkpoint.family(), checkpoint.load_model("cpu")
    language_model = LanguageModel.of(model)
    found: dict[str, list[Certificate]] = {scheme: [] for scheme in SCHEMES}
    sizes: dict[str, int] = dict.fromkeys(SCHEMES, 0)
    for scene in sample_scenes(seed=HELD_OUT_SEED, count=clips):
        frames = render([scene]).numpy()[0]
        inputs = family.preprocess(frames, np.arange(len(frames)) / 2.0)
        cache = prefill(language_model, family.prompt(model, inputs), settings.merge, settings.prefill).cache
        live, probes = ready(language_model, cache), [family.question_ids(q.text) for q in questions(scene)]
        for scheme in SCHEMES:
            packed = encode_kv(cache, scheme)
            stored = ready(language_model, decode_kv(packed.data))
            found[scheme].append(certify(language_model, live, stored, probes, tokens=1))
            sizes[scheme] += len(packed.data)
    rows = []
    for scheme, certificates in found.items():
        compared = sum(c.compared for c in certificates)
        rows.append(
            {
                "scheme": scheme,
                "bytes_per_clip": sizes[scheme] // clips,
                "kl_mean": sum(c.kl_mean * c.compared for c in certificates) / compared,
                "kl_max": max(c.kl_max for c in certificates),
                "top1_agreement": sum(c.top1_agreement * c.compared for c in certificates) / compared,
                "questions": compared,
                "biased_keys_attention_kl": _biased_attention_kl(scheme),
            }
        )
    show(rows)
    print(json.dumps({"bench": "schemes", "clips": clips, "rows": rows}))


def _biased_attention_kl(scheme: str) -> float:
    """Mean KL divergence in nats between attention over the original keys and attention over the stored keys.

    Some channels of the keys have a constant of about a hundred added, as the key projections of Qwen2 do. The keys are
    taken before RoPE.
    """
    g = torch.Generator().manual_seed(0)
    cache = random_cache(1024, layers=1)
    bias = torch.zeros(128)
    bias[::16] = torch.tensor([180.0, -90.0, 60.0, -140.0, 30.0, 110.0, -45.0, 75.0])
    keys = (cache.keys[0].float() + bias).bfloat16()
    stored = decode_kv(encode_kv(replace(cache, keys=(keys,)), scheme).data).keys[0]
    query = torch.randn(4, 64, 128, generator=g) * (bias == 0)  # queries of trained models are 0 in biased channels
    logs = [(query @ k.float().mT / 128**0.5).log_softmax(-1) for k in (keys, stored)]
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())
