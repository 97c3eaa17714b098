"""Small caches and artifacts for the tests of the store."""

import torch

from sttm.kv_cache import KVCache
from sttm.store.artifact import Source
from sttm.store.catalog.row import CatalogRow
from sttm.store.facts import Facts
from sttm.store.key import Recipe, make_recipe
from sttm.store.kv.file import encode_kv
from sttm.store.store import Store
from sttm.store.tokens import write_tokens

T, H, W = 6, 7, 5
LEADING, TRAILING = 9, 2


def make_cache(
    dtype: torch.dtype = torch.bfloat16,
    layers: int = 5,
    merge_layer: int = 2,
    heads: int = 2,
    head_dim: int = 64,
    seed: int = 0,
    device: str = "cpu",
    frames: int = T,
) -> KVCache:
    """A cache with key channels of very different offset, as Qwen2 has."""
    generator = torch.Generator().manual_seed(seed)
    cells = frames * H * W
    survivors = cells * 3 // 10
    long, short = LEADING + cells + TRAILING, LEADING + survivors + TRAILING
    bias = torch.randn(head_dim, generator=generator) * 5
    bias[3] = 180.0

    def numbers(layer: int, offset: torch.Tensor | float) -> torch.Tensor:
        tokens = short if layer >= merge_layer else long
        return (torch.randn(heads, tokens, head_dim, generator=generator) + offset).to(dtype).to(device)

    cell = torch.randperm(cells, generator=generator)[:survivors].sort().values
    t, y, x = cell // (H * W), cell // W % H, cell % W
    return KVCache(
        keys=tuple(numbers(layer, bias) for layer in range(layers)),
        values=tuple(numbers(layer, 0.0) for layer in range(layers)),
        merge_layer=merge_layer,
        prefix_ids=torch.arange(long, dtype=torch.int32),
        positions=torch.arange(3 * long, dtype=torch.int32).view(3, long),
        reduced_positions=torch.arange(3 * short, dtype=torch.int32).view(3, short),
        next_position=long + 1,
        reduced_next_position=short + 1,
        visual=torch.arange(LEADING, LEADING + survivors, dtype=torch.int32),
        boxes=torch.stack((t, y, x, y + 1, x + 1), dim=1).to(torch.int32),
        patches=torch.ones(survivors, dtype=torch.int32),
        multiplicity=torch.arange(1, short + 1, dtype=torch.int32),
        grid=(frames, H, W),
        frame_seconds=torch.arange(frames, dtype=torch.float64) / 3,
    )


def make_tokens(cache: KVCache, dim: int = 32) -> bytes:
    """A `tokens.parquet` that fits a cache."""
    t, y, x = cache.boxes[:, 0], cache.boxes[:, 1], cache.boxes[:, 2]
    features = torch.randn(len(t), dim, generator=torch.Generator().manual_seed(1))
    return write_tokens(cache.boxes, cache.patches, (t * H + y) * W + x, cache.frame_seconds, features, cache.grid)


def recipe_for(scheme: str = "int8", **merge: object) -> Recipe:
    """A small recipe."""
    return make_recipe(model={"id": "tiny"}, merge={"budget": 0.3, **merge}, store={"kv_scheme": scheme})


def source_for(name: str = "clip") -> Source:
    """A source of this name."""
    return Source(f"file:///videos/{name}.mp4", name, f"{name}.mp4", 1000, "etag-1")


def publish(
    store: Store, name: str = "clip", scheme: str = "int8", cache: KVCache | None = None, **merge: object
) -> CatalogRow:
    """Publish a small artifact of the video `name` and append its row; `merge` overrides settings in its recipe."""
    cache = cache or make_cache()
    facts = Facts(210, 63, {"temporal": 0.5}, {"prefill": 0.25}, run_id="run-1")
    kv = encode_kv(cache, scheme, {"rope": {"theta": 1e6}})
    recipe = recipe_for(scheme, **merge)
    row = store.publish(recipe, f"content of {name}", source_for(name), kv, make_tokens(cache), facts)
    store.catalog.append([row])
    return row
