"""A store written by format version 1, kept for ever: it must stay readable, and writing must give the same bytes.

`tests/data/golden_v1` was made by `python tests/test_store_golden.py`; a new format gets a `golden_v2` beside it.
"""

import hashlib
import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from store_samples import make_cache, publish

from sttm.kv_cache import KVCache
from sttm.store.kv.file import encode_kv, read_header
from sttm.store.maintenance import find_garbage, verify
from sttm.store.store import Store

GOLDEN = Path(__file__).parent / "data" / "golden_v1"
SCHEMES = ["exact", "int8", "k8v4", "int4"]


def fingerprint(cache: KVCache) -> str:
    """sha256 over all tensors and numbers of a cache."""
    digest = hashlib.sha256()
    for name, value in sorted(cache.__dict__.items()):
        tensors = value if isinstance(value, tuple) else (value,)
        for item in tensors:
            is_tensor = isinstance(item, torch.Tensor)
            digest.update(name.encode())
            digest.update(item.contiguous().view(torch.uint8).numpy().tobytes() if is_tensor else str(item).encode())
    return digest.hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(shutil.copytree(GOLDEN / "store", tmp_path / "store")))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_version_1_wrote_is_read_to_the_bit(store: Store, scheme: str) -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text())[scheme]
    row = store.find(f"clip-{scheme}")
    assert row.identity == expected["identity"]
    assert fingerprint(store.load_kv(row.identity)) == expected["cache"]
    tokens = store.load_tokens(row.identity)
    features = tokens.features.contiguous().view(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(features).hexdigest() == expected["features"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_writing_gives_the_bytes_version_1_wrote(store: Store, scheme: str) -> None:
    exact = store.load_kv(store.find("clip-exact").identity)
    key = store.manifest(store.find(f"clip-{scheme}").identity).kv.key
    notes = read_header(store.storage, key)[0].notes
    assert encode_kv(exact, scheme, notes).data == store.storage.read(key)


def test_the_golden_store_is_sound(store: Store) -> None:
    assert list(verify(store)) == []
    assert len(store.catalog.rows()) == len(SCHEMES)


def _make() -> None:
    store = Store.open(str(GOLDEN / "store"), create=True)
    expected = {}
    for scheme in SCHEMES:
        cache = make_cache(layers=2, merge_layer=1, heads=1, head_dim=128, frames=4)
        row = publish(store, f"clip-{scheme}", scheme, cache)
        features = store.load_tokens(row.identity).features
        expected[scheme] = {
            "identity": row.identity,
            "cache": fingerprint(store.load_kv(row.identity)),
            "features": hashlib.sha256(features.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(),
        }
    store.catalog.compact()
    for entry in find_garbage(store, timedelta(0)).objects:
        store.storage.delete(entry.key)
    (GOLDEN / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    _make()
