"""A sealed record comes back as it was, or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sttm.errors import ArtifactError
from sttm.store.sealed import MAX_BYTES, read_sealed, seal, unseal
from sttm.store.storage import Storage

BODY = {"text": "ä", "number": 0.1, "list": [1, None, True], "empty": {}}


def test_a_record_comes_back_as_it_was() -> None:
    assert unseal(seal(BODY), "r", "delete it") == BODY


def test_any_flipped_bit_is_noticed() -> None:
    record = seal(BODY)
    for position in range(len(record)):
        for bit in range(8):
            damaged = bytearray(record)
            damaged[position] ^= 1 << bit
            with pytest.raises(ArtifactError, match=r"record-7 is damaged: .*; delete it"):
                unseal(bytes(damaged), "record-7", "delete it")


@given(
    st.binary(max_size=60) | st.sampled_from([b"[" * 200_000, b"9" * 9000, b'{"body":1e999}', b'{"a":1,"a":1}', b"[]"])
)
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        unseal(data, "r", "delete it")


def test_a_huge_record_is_refused_without_reading_it_all() -> None:
    storage = Storage("memory://sealed-tests")
    storage.put("huge", bytes(MAX_BYTES + 5))
    with pytest.raises(ArtifactError, match=r"larger than .*; delete it"):
        read_sealed(storage, "huge", "delete it")
