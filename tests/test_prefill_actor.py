"""The prefill actor without Ray: what overlaps, and what it says its GPU did."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.indexing.actor import Indexed, PrefillActor
from sttm.config import IndexConfig, index_recipe
from sttm.corpus.listing import VideoRef
from sttm.engine.fidelity import FidelityConfig
from sttm.indexer import GPU_STAGES, DecodedVideo, VideoReader
from sttm.merging import MergeConfig
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.store.storage import Data, Storage
from sttm.store.store import Store
from sttm.synthetic import render, sample_scenes
from sttm.synthetic.encode import encode_clip
from sttm.video.decode import VideoConfig


def make(folder: Path, model: Path, probes: tuple[str, ...] = ()) -> tuple[PrefillActor, DecodedVideo]:
    """An actor on the CPU with an empty store, and a video for it."""
    config = IndexConfig(
        model=ModelConfig(path=str(model), dtype="float32"),
        video=VideoConfig(fps=2.0, max_frames=8),
        merge=MergeConfig(budget=0.4),
        fidelity=FidelityConfig(probes=probes, max_kl=None),
    )
    clip, url = folder / "clip.mp4", str(folder / "store")
    clip.write_bytes(encode_clip(render(sample_scenes(seed=7, count=1, frames=8, size=168)).numpy()[0]))
    Store.open(url, create=True)
    recipe = index_recipe(config, Checkpoint.open(config.model))
    actor = PrefillActor(config, recipe, url, "run", timeout_s=60)
    actor.load()
    return actor, VideoReader(config).read(VideoRef.from_uri(str(clip)))


class MeetingStorage(Storage):
    """A store in which a KV file is written only while another one is."""

    def __init__(self, url: str, writers: int) -> None:
        super().__init__(url)
        self._meeting = threading.Barrier(writers)

    def put(self, key: str, data: Data) -> None:
        if key.endswith("kv.safetensors"):
            self._meeting.wait(timeout=30)
        super().put(key, data)


def test_a_video_is_prefilled_while_the_one_before_is_stored(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    actor, decoded = make(tmp_path, qwen2_vl_folder)
    store = Store(MeetingStorage(str(tmp_path / "store"), writers=2))
    actor.indexer._store = store
    videos = [replace(decoded, content_digest=f"{number:064x}") for number in range(4)]
    with ThreadPoolExecutor(2) as threads:
        rows = [done.row for done in threads.map(actor.index, videos)]
    assert len({row.identity for row in rows}) == 4
    assert all(store.has(row.identity) for row in rows)


@pytest.mark.parametrize("probes", [(), ("Why?",)])
def test_gpu_seconds_are_those_of_the_stages_on_it_and_none_for_known_content(
    tmp_path: Path, qwen2_vl_folder: Path, probes: tuple[str, ...]
) -> None:
    actor, decoded = make(tmp_path, qwen2_vl_folder, probes)
    first, again = actor.index(decoded), actor.index(decoded)
    timings = first.row.timings_s
    assert set(timings) == {"decode", "decode_cpu", "encode", "prefill", "pack", "digest"} | (
        {"certify"} if probes else set()
    )
    assert first.gpu_s == pytest.approx(sum(timings[stage] for stage in GPU_STAGES if stage in timings))
    assert min(timings.values()) > 0
    assert again.gpu_s == 0
    assert again.row.identity == first.row.identity


@pytest.mark.gpu
def test_a_video_that_the_actor_decodes_itself_becomes_the_same_artifact(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    actor, decoded = make(tmp_path, qwen2_vl_folder)
    ended = actor.decode_and_index(VideoRef.from_uri(decoded.source.uri))
    assert isinstance(ended, Indexed)
    assert ended.row.identity == actor.index(decoded).row.identity
    assert ended.gpu_s > 0


def test_pixels_that_ray_gives_out_read_only_are_prefilled_like_others(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    actor, decoded = make(tmp_path, qwen2_vl_folder)
    rows = []
    for number, writeable in enumerate((True, False)):
        pixels = decoded.inputs.pixels.copy()
        pixels.flags.writeable = writeable
        inputs = replace(decoded.inputs, pixels=pixels)
        rows.append(actor.index(replace(decoded, inputs=inputs, content_digest=f"{number:064x}")).row)
    store = Store.open(tmp_path / "store")
    one, other = (store.manifest(row.identity).kv.digest for row in rows)
    assert one == other


@pytest.mark.gpu
def test_a_gpu_stores_the_same_bytes_through_the_overlapping_path_as_alone(
    tmp_path: Path, qwen2_vl_folder: Path
) -> None:
    actor, decoded = make(tmp_path, qwen2_vl_folder)
    alone = actor.index(decoded)
    videos = [replace(decoded, content_digest=f"{number:064x}") for number in range(12)]
    with ThreadPoolExecutor(3) as threads:
        rows = [done.row for done in threads.map(actor.index, videos)]
    store = Store.open(tmp_path / "store")
    expected = store.manifest(alone.row.identity)
    for row in rows:
        manifest = store.manifest(row.identity)
        assert (manifest.kv.digest, manifest.tokens.digest) == (expected.kv.digest, expected.tokens.digest)
