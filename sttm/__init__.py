"""Ask questions about any video of an archive, cheaply: read each video once, keep its KV cache, answer from the cache.

    import sttm

    sttm.index("clips", "store", "tiny")             # every video of a folder into a store, in this process
    archive = sttm.open("store")
    for video in archive.videos():
        print(video.name, video.tokens_before, video.tokens_after)

    print(archive.ask("clip-0.mp4", "What colour is the square?"))
    print(archive.ask("clip-0.mp4", "What shape flashed?", options=["square", "star"]))
    for answer in archive.ask_all("How many red objects are there?"):
        print(answer.video, answer.answer, answer.error)

    cache = archive.kv("clip-0.mp4")                 # per layer: cache.keys[layer] [heads, tokens, head_dim]
    tokens = archive.tokens("clip-0.mp4")            # tokens.features [M, C], tokens.boxes [M, 5], tokens.seconds [M]

`sttm index` on the command line does the same as `sttm.index` on a Ray cluster, where a video that crashes a decoder
costs no other. Importing this package loads neither Ray nor a video decoder nor PyTorch: they load at the first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sttm.archive import Answer, Archive
    from sttm.config import IndexConfig
    from sttm.engine.sampling import SamplingConfig
    from sttm.errors import SttmError
    from sttm.kv_cache import KVCache
    from sttm.local_index import index
    from sttm.merging import MergeConfig, Merged, merge
    from sttm.store.catalog.row import CatalogRow
    from sttm.store.tokens import Tokens

    open = Archive.open

__all__ = [
    "Answer",
    "Archive",
    "CatalogRow",
    "IndexConfig",
    "KVCache",
    "MergeConfig",
    "Merged",
    "SamplingConfig",
    "SttmError",
    "Tokens",
    "index",
    "merge",
    "open",
]
_MODULES = {
    "Answer": "sttm.archive",
    "Archive": "sttm.archive",
    "CatalogRow": "sttm.store.catalog.row",
    "IndexConfig": "sttm.config",
    "KVCache": "sttm.kv_cache",
    "MergeConfig": "sttm.merging",
    "Merged": "sttm.merging",
    "SamplingConfig": "sttm.engine.sampling",
    "SttmError": "sttm.errors",
    "Tokens": "sttm.store.tokens",
    "index": "sttm.local_index",
    "merge": "sttm.merging",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    if name == "open":
        return import_module("sttm.archive").Archive.open
    if name not in _MODULES:
        raise AttributeError(f"module 'sttm' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
