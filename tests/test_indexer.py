"""One video's way into the store and back out, in one process: what is answered later is what was read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from web_server import WebServer

from sttm.config import IndexConfig, index_recipe
from sttm.corpus.listing import VideoRef, list_corpus
from sttm.engine.answer import Continuation, answer
from sttm.engine.fidelity import FidelityConfig
from sttm.engine.prefill import prefill
from sttm.engine.ready_video import ready
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ConfigError, StoreError, VideoError
from sttm.indexer import Indexer, VideoReader
from sttm.kv_cache import KVCache
from sttm.merging import MergeConfig
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.language_model import LanguageModel
from sttm.store.kv.scheme import StoreConfig
from sttm.store.store import Store
from sttm.synthetic import render, sample_scenes
from sttm.synthetic.encode import encode_clip
from sttm.video.decode import VideoConfig

QUESTION = "What colour is the sea?"


class Job:
    """A config, a store, and what is needed to index into it and answer from it."""

    def __init__(self, folder: Path, model: Path, scheme: str = "exact", max_kl: float | None = None) -> None:
        self.config = IndexConfig(
            model=ModelConfig(path=str(model), dtype="float32"),
            video=VideoConfig(fps=2.0, max_frames=8),
            merge=MergeConfig(budget=0.4),
            store=StoreConfig(kv_scheme=scheme),
            fidelity=FidelityConfig(max_kl=max_kl),
        )
        self.url = str(folder / "store")
        self.store = Store.open(self.url, create=True)
        self.checkpoint = Checkpoint.open(self.config.model)
        self.recipe = index_recipe(self.config, self.checkpoint)
        self.reader = VideoReader(self.config)
        self.indexer = Indexer(self.config, self.recipe, self.url, "run", device="cpu")

    def index(self, path: Path) -> str:
        """Index one file; its identity."""
        decoded = self.reader.read(VideoRef.from_uri(str(path)))
        row = self.indexer.index(decoded)
        self.store.catalog.append([row])
        return row.identity

    def live(self, path: Path) -> tuple[list[int], torch.Tensor]:
        """Answer tokens and first logits from the whole model, with nothing stored in between."""
        family, model = self.checkpoint.family(), self.checkpoint.load_model("cpu")
        decoded = self.reader.read(VideoRef.from_uri(str(path)))
        lm = LanguageModel.of(model)
        result = prefill(lm, family.prompt(model, decoded.inputs), self.config.merge, self.config.prefill)
        return self._answer(lm, result.cache)

    def stored(self, identity: str) -> tuple[list[int], torch.Tensor]:
        """The same from the stored cache and the language model alone."""
        return self._answer(self.checkpoint.load_language_model("cpu"), Store.open(self.url).load_kv(identity))

    def _answer(self, lm: LanguageModel, cache: KVCache) -> tuple[list[int], torch.Tensor]:
        video, ids = ready(lm, cache), self.checkpoint.family(with_processor=False).question_ids(QUESTION)
        tokens = answer(lm, video, [ids], frozenset(), SamplingConfig(max_tokens=8))[0]
        return tokens, Continuation(lm, video, [ids], 0).start()[0]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_clip(render(sample_scenes(seed=7, count=1, frames=8, size=168)).numpy()[0]))
    return path


def test_stored_answer_equals_live_answer(tmp_path: Path, clip: Path, qwen2_vl_folder: Path) -> None:
    job = Job(tmp_path, qwen2_vl_folder)
    tokens, logits = job.stored(job.index(clip))
    live_tokens, live_logits = job.live(clip)
    assert tokens == live_tokens
    assert torch.equal(logits, live_logits)


def test_int8_cache_answers_almost_alike_at_a_fraction_of_the_bytes(
    tmp_path: Path, clip: Path, qwen2_vl_folder: Path
) -> None:
    exact, int8 = Job(tmp_path / "a", qwen2_vl_folder), Job(tmp_path / "b", qwen2_vl_folder, "int8")
    one, other = exact.index(clip), int8.index(clip)
    _, logits = int8.stored(other)
    _, live = exact.live(clip)
    divergence = torch.nn.functional.kl_div(logits.log_softmax(-1), live.softmax(-1), reduction="sum")
    assert divergence < 1e-3
    sizes = [job.store.manifest(name).kv.size_bytes for job, name in ((exact, one), (int8, other))]
    assert sizes[1] < 0.45 * sizes[0]  # of float32


def test_certificate_of_an_exact_cache_finds_no_difference_and_of_a_coarse_one_does(
    tmp_path: Path, clip: Path, qwen2_vl_folder: Path
) -> None:
    found = {}
    for scheme in ("exact", "int8", "int4"):
        job = Job(tmp_path / scheme, qwen2_vl_folder, scheme)
        found[scheme] = job.store.manifest(job.index(clip)).facts.certificate
        assert job.store.find("clip.mp4").kl_mean == found[scheme].kl_mean
    assert found["exact"].kl_max == 0
    assert found["exact"].top1_agreement == 1
    assert 0 < found["int8"].kl_mean < found["int4"].kl_mean
    assert found["int8"].compared == 3 * 4


def test_unfaithful_cache_is_not_published(tmp_path: Path, clip: Path, qwen2_vl_folder: Path) -> None:
    job = Job(tmp_path, qwen2_vl_folder, "int4", max_kl=1e-9)
    with pytest.raises(VideoError, match="max_kl=1e-09; choose a finer"):
        job.index(clip)
    assert not (tmp_path / "store" / "commit").exists()


def test_messages_hide_the_credentials_of_an_address(tmp_path: Path, clip: Path, qwen2_vl_folder: Path) -> None:
    job = Job(tmp_path, qwen2_vl_folder, "int4", max_kl=1e-9)
    narrow = encode_clip(np.zeros((1, 2, 1002, 3), dtype=np.uint8))
    with WebServer({"good.mp4": clip.read_bytes(), "narrow.mp4": narrow}) as web_server:
        for name, code in (("good.mp4", "unfaithful_cache"), ("narrow.mp4", "unusable_frames")):
            with pytest.raises(VideoError, match=rf"{code}: http://127\S*/{name}: ") as caught:
                job.indexer.index(job.reader.read(VideoRef.from_uri(web_server.url(name))))
            assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "cure"),
    [
        ("prefill", "merge_layer", 99, r"merge_layer=99: this model has layers 0 to \d; choose one"),
        ("prefill", "merge_layer", -1, r"merge_layer=-1: this model has"),
        ("merge", "head_dim", 7, r"head_dim=7 does not divide this model's \d+ channels; take a divisor"),
    ],
)
def test_setting_that_no_model_can_follow_is_refused_before_any_video(
    tmp_path: Path, qwen2_vl_folder: Path, section: str, key: str, value: int, cure: str
) -> None:
    job = Job(tmp_path, qwen2_vl_folder)
    changed = getattr(job.config, section).model_copy(update={key: value})
    config = job.config.model_copy(update={section: changed})
    with pytest.raises(ConfigError, match=cure):
        Indexer(config, job.recipe, job.url, "run", device="cpu")


def test_equal_content_under_another_name_is_not_prefilled_again(
    tmp_path: Path, clip: Path, qwen2_vl_folder: Path
) -> None:
    job = Job(tmp_path, qwen2_vl_folder)
    identity = job.index(clip)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    row = job.indexer.stored(job.reader.read(VideoRef.from_uri(str(copy))))
    assert row is not None
    assert (row.identity, row.name) == (identity, "copy.mp4")


def test_tokens_table_says_where_every_survivor_came_from(tmp_path: Path, clip: Path, qwen2_vl_folder: Path) -> None:
    job = Job(tmp_path, qwen2_vl_folder)
    identity = job.index(clip)
    tokens, cache = job.store.load_tokens(identity), job.store.load_kv(identity)
    assert tokens.grid == cache.grid
    assert int(tokens.patches.sum()) == np.prod(cache.grid)
    assert torch.equal(tokens.boxes, cache.boxes)
    assert len(tokens.patches) == int(0.4 * np.prod(cache.grid))


@pytest.mark.parametrize("name", ["one_frame", "tiny"])
def test_awkward_but_good_videos_are_indexed(tmp_path: Path, qwen2_vl_folder: Path, name: str) -> None:
    frames = np.zeros((1, 96, 64, 3) if name == "one_frame" else (6, 2, 2, 3), dtype=np.uint8)
    path = tmp_path / f"{name}.mp4"
    path.write_bytes(encode_clip(frames))
    job = Job(tmp_path, qwen2_vl_folder)
    tokens, _ = job.stored(job.index(path))
    assert len(tokens) == 8


def test_store_of_another_format_version_is_refused(tmp_path: Path) -> None:
    from sttm.store.sealed import seal

    Store.open(str(tmp_path / "s"), create=True)
    (tmp_path / "s" / "format.json").write_bytes(seal({"format": "sttm-store", "version": 99}))
    with pytest.raises(StoreError, match="99"):
        Store.open(str(tmp_path / "s"))


def test_listing_keeps_what_skipping_needs(clip: Path) -> None:
    (ref,) = list_corpus(str(clip))
    assert ref.size_bytes == clip.stat().st_size
    assert ref.version.startswith("mtime:")
