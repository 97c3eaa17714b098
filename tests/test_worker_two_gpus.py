"""A query worker whose model is spread over two GPUs answers as one on a single GPU, from whatever tier."""

from pathlib import Path

import pytest
import torch
from indexed import index_clips

from sttm.engine.sampling import SamplingConfig
from sttm.query.cache_tier import CacheConfig
from sttm.query.checkpoint import open_checkpoint
from sttm.query.question import Query
from sttm.query.worker import QueryWorker
from sttm.store.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def texts(worker: QueryWorker, identity: str) -> list[str]:
    queries = [Query((text,), SamplingConfig(max_tokens=12)) for text in ("What is it?", "Which colour? Why?")]
    answers = worker.start(worker.load(identity), queries)
    while answers.is_running:
        answers.step()
    return answers.texts


def test_two_gpus_answer_as_one(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    store = Store.open(index_clips(tmp_path, qwen2_vl_folder, count=2))
    rows = [store.find(f"clip-{number}.mp4") for number in range(2)]
    checkpoint = open_checkpoint(store.manifest(rows[0].identity))
    gpus = [torch.device("cuda", number) for number in range(2)]
    all_to_host = CacheConfig(device_gb=0, host_gb=1)
    one = QueryWorker(store, checkpoint, gpus[0], all_to_host)
    two = QueryWorker(store, checkpoint, gpus, all_to_host)
    assert set(two.model.layer_devices) == set(gpus)
    expected = [texts(one, row.identity) for row in rows]
    for _ in range(3):  # loaded, then from host memory
        assert [texts(two, row.identity) for row in rows] == expected
    assert (two.videos.counts["load"], two.videos.counts["host"]) == (2, 4)
