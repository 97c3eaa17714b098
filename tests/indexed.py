"""A small store with real artifacts, made in this process."""

from pathlib import Path

from sttm.config import IndexConfig, index_recipe
from sttm.corpus.listing import list_corpus
from sttm.engine.prefill import PrefillConfig
from sttm.indexer import Indexer, VideoReader
from sttm.merging import MergeConfig
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.store.kv.scheme import StoreConfig
from sttm.store.store import Store
from sttm.synthetic import render, sample_scenes
from sttm.synthetic.encode import encode_clip
from sttm.video.decode import VideoConfig


def index_clips(folder: Path, model: Path, *, count: int, scheme: str = "int8", merge_layer: int = 2) -> str:
    """Index `count` encoded synthetic clips, clip-0.mp4 and so on; the URL of the store.

    A further call with another scheme adds a recipe to the same store.
    """
    config = IndexConfig(
        model=ModelConfig(path=str(model), dtype="float32"),
        video=VideoConfig(fps=2.0, max_frames=8),
        merge=MergeConfig(budget=0.4),
        prefill=PrefillConfig(merge_layer=merge_layer),
        store=StoreConfig(kv_scheme=scheme),
    )
    corpus, url = folder / "corpus", str(folder / "store")
    corpus.mkdir(exist_ok=True)
    for number, frames in enumerate(render(sample_scenes(seed=7, count=count, frames=8, size=112)).numpy()):
        clip = corpus / f"clip-{number}.mp4"
        if not clip.exists():
            clip.write_bytes(encode_clip(frames))
    store = Store.open(url, create=True)
    reader = VideoReader(config)
    indexer = Indexer(config, index_recipe(config, Checkpoint.open(config.model)), url, "run", device="cpu")
    for ref in list_corpus(str(corpus)):
        decoded = reader.read(ref)
        store.catalog.append([indexer.index(decoded)])
    return url
