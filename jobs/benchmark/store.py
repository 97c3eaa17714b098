"""Compare writing and reading a KV cache with a raw copy of the same number of bytes."""

import json
import uuid
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from torch import Tensor

from jobs.benchmark.timing import measure, show
from jobs.command import StoreOption
from sttm.kv_cache import KVCache
from sttm.store.kv.file import encode_kv, read_kv
from sttm.store.kv.read_buffer import ReadBuffer
from sttm.store.storage import Storage


def bench_store(
    store: StoreOption,
    tokens: Annotated[
        int, typer.Option(min=1, help="tokens of the cache, which has 28 layers, 4 key heads and 128 channels a head")
    ] = 2048,
    repeats: Annotated[int, typer.Option(min=1, help="how often each step is timed; the median counts")] = 3,
) -> None:
    """Compare writing and reading a KV cache with a raw copy of the same number of bytes.

    The benchmark deletes what it wrote. Examples:

        python -m jobs.bench store --store /tmp/store --tokens 1024
        python -m jobs.bench store --store s3://bucket/path
    """
    storage, key = Storage(store), f"bench/{uuid.uuid4().hex}"
    cache, buffer = random_cache(tokens), ReadBuffer()
    rows = []
    for scheme in ("exact", "int8", "int4"):
        packed = encode_kv(cache, scheme)
        raw = bytes(len(packed.data))
        steps: dict[str, Callable[[], object]] = {
            "pack": partial(encode_kv, cache, scheme),
            "write": partial(storage.put, key, packed.data),
            "read_raw": partial(storage.read, key),
            "read": partial(read_kv, storage, key, packed.header_digest, len(packed.data), buffer=buffer),
            "write_raw": partial(storage.put, f"{key}-raw", raw),
        }
        seconds = {name: measure(step, torch.device("cpu"), repeats).seconds for name, step in steps.items()}
        rows.append(
            {"scheme": scheme, "bytes": len(raw)}
            | {f"{name}_gb_per_s": round(len(raw) / 1e9 / s, 3) for name, s in seconds.items()}
        )
    for name in (key, f"{key}-raw"):
        storage.delete(name)
    show(rows)
    print(json.dumps({"bench": "store", "store": storage.url, "tokens": tokens, "rows": rows}))


def random_cache(tokens: int, layers: int = 28, heads: int = 4, dim: int = 128) -> KVCache:
    """A KV cache with random keys and values in bfloat16; every token is its own survivor."""
    g = torch.Generator().manual_seed(0)

    def numbers() -> tuple[Tensor, ...]:
        return tuple(torch.randn(heads, tokens, dim, generator=g).bfloat16() for _ in range(layers))

    places = torch.arange(tokens, dtype=torch.int32)
    side = torch.zeros(tokens, 5, dtype=torch.int32)
    side[:, 0] = places
    side[:, 3:] = 1
    return KVCache(
        keys=numbers(),
        values=numbers(),
        merge_layer=0,
        prefix_ids=places,
        positions=places[None],
        reduced_positions=places[None],
        next_position=tokens,
        reduced_next_position=tokens,
        visual=places,
        boxes=side,
        patches=torch.ones(tokens, dtype=torch.int32),
        multiplicity=torch.ones(tokens, dtype=torch.int32),
        grid=(tokens, 1, 1),
        frame_seconds=torch.arange(tokens, dtype=torch.float64),
    )
