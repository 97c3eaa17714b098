"""A stored video answers sooner than the video read again, on this machine, with the built-in model."""

import time
from pathlib import Path

import pytest
from indexed import index_clips

from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.engine.answer import answer
from sttm.engine.prefill import prefill
from sttm.engine.ready_video import ready
from sttm.engine.sampling import SamplingConfig
from sttm.indexer import VideoReader
from sttm.merging import MergeConfig
from sttm.models.checkpoint import BUILT_IN, Checkpoint, ModelConfig
from sttm.models.language_model import LanguageModel
from sttm.query.checkpoint import open_checkpoint
from sttm.query.question import Query
from sttm.query.worker import QueryWorker
from sttm.store.store import Store
from sttm.video.decode import VideoConfig

QUESTION = "what is the first shape?"
ONE_TOKEN = SamplingConfig(max_tokens=1)


@pytest.mark.slow
def test_first_token_from_a_store_at_least_5_times_sooner_than_from_the_video(tmp_path: Path) -> None:
    """Both sides have their model loaded; the best of five each, so that a busy machine disturbs neither."""
    store = Store.open(index_clips(tmp_path, BUILT_IN, count=1))
    row = store.find("clip-0.mp4")
    config = IndexConfig(model=ModelConfig(path="tiny", dtype="float32"), video=VideoConfig(fps=2.0, max_frames=8))
    checkpoint = Checkpoint.open(config.model)
    model, family, reader = checkpoint.load_model("cpu"), checkpoint.family(), VideoReader(config)
    text, question = LanguageModel.of(model), family.question_ids(QUESTION)
    worker = QueryWorker(store, open_checkpoint(store.manifest(row.identity)), "cpu")

    def read_again() -> None:
        prompt = family.prompt(model, reader.read(VideoRef.from_uri(row.uri)).inputs)
        cache = prefill(text, prompt, MergeConfig(budget=0.4), config.prefill).cache
        answer(text, ready(text, cache), [question], frozenset(), ONE_TOKEN)

    def from_store() -> None:
        cache = store.load_kv(row.identity)
        worker.start(ready(worker.model, cache), [Query((QUESTION,), ONE_TOKEN)]).step()

    def best(function: object) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            function()  # type: ignore[operator]
            times.append(time.perf_counter() - started)
        return min(times)

    again, stored = best(read_again), best(from_store)
    print(f"first token: {1000 * again:.0f} ms from the video, {1000 * stored:.0f} ms from the store")
    assert again >= 5 * stored
