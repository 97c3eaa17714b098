"""Reading one cache after another through one buffer: nobody sees what another read."""

import pytest
import torch
from store_samples import T, make_cache

from sttm.store.kv.file import encode_kv, read_kv
from sttm.store.kv.read_buffer import ReadBuffer
from sttm.store.storage import Storage


@pytest.mark.parametrize("scheme", ["exact", "int8"])
def test_caches_read_through_one_buffer_do_not_share_it(scheme: str) -> None:
    first, second = make_cache(seed=1), make_cache(seed=2, frames=T + 1)
    storage, buffer = Storage("memory://kv-buffer"), ReadBuffer()
    for name, cache in (("a", first), ("b", second)):
        storage.put(name, encode_kv(cache, scheme).data)
    read = {name: read_kv(storage, name, buffer=buffer) for name in ("b", "a")}  # the larger first
    for name, got in read.items():
        alone = read_kv(storage, name)
        for ours, expected in zip(got.keys + got.values, alone.keys + alone.values, strict=True):
            assert torch.equal(ours, expected)


def test_a_buffer_in_use_is_not_handed_out_twice() -> None:
    buffer = ReadBuffer()
    with buffer.take(4) as one, buffer.take(4) as other:
        one[:], other[:] = b"abcd", b"efgh"
        assert bytes(one) == b"abcd"
    with buffer.take(2) as again:
        assert bytes(again) == b"ab"


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["exact", "int8", "int4"])
def test_a_gpu_reads_one_cache_after_another_through_one_buffer(scheme: str) -> None:
    """Copies run behind: the buffer must not be used again before they have arrived."""
    storage, buffer = Storage("memory://kv-gpu"), ReadBuffer()
    caches = [make_cache(layers=4, merge_layer=2, heads=8, frames=400, seed=seed) for seed in range(4)]
    for name, cache in enumerate(caches):
        storage.put(str(name), encode_kv(cache, scheme).data)
    read = [read_kv(storage, str(name), device="cuda", buffer=buffer) for name in range(4)]
    for name, got in enumerate(read):
        alone = read_kv(storage, str(name))
        for ours, expected in zip(got.keys + got.values, alone.keys + alone.values, strict=True):
            torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=0)
