"""Small JSON records in which every flipped bit is noticed: canonical JSON that holds the digest of its own body."""

import json
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from sttm.errors import ArtifactError
from sttm.store.key import canonical_json
from sttm.store.storage import Storage

MAX_BYTES = 8 << 20
_BYTES_FOR_THREADS = 1 << 20  # for fewer, starting threads costs more than the digest


def seal(body: Mapping[str, Any]) -> bytes:
    """`{"body": …, "digest": blake3 of the body's canonical text}` as canonical JSON."""
    return canonical_json({"body": body, "digest": digest_of(canonical_json(body))})


def unseal(data: bytes, name: str, cure: str) -> dict[str, Any]:
    """The body of a sealed record.

    Args:
        data: the bytes of the record.
        name: name of the record for messages.
        cure: what to do about a damaged record, for messages.

    Raises:
        ArtifactError: the record is not byte for byte what `seal` wrote.
    """
    try:
        record = parse_json(data)
        body = record.get("body") if isinstance(record, dict) else None
        if not isinstance(body, dict) or seal(body) != data:
            raise ValueError("its content does not match its digest")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is damaged: {error}; {cure}") from None
    return body


def read_sealed(storage: Storage, key: str, cure: str) -> dict[str, Any]:
    """Read and unseal a record.

    Args:
        storage: objects of the store.
        key: key of the record.
        cure: what to do about a damaged record, for messages.

    Raises:
        MissingObjectError: there is no such object.
        ArtifactError: the object is not byte for byte what `seal` wrote, or is larger than `MAX_BYTES`.
    """
    name = f"{storage.url}/{key}"
    data = storage.read(key, 0, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{name} is larger than {MAX_BYTES} bytes: not a record of this program; {cure}")
    return unseal(data, name, cure)


def parse_json(data: bytes) -> Any:
    """Parse JSON of unknown origin.

    Raises:
        ValueError: the bytes are not strict JSON in UTF-8, or an object repeats a key.
        RecursionError: the JSON is nested too deeply.
    """
    return json.loads(data.decode("utf-8"), object_pairs_hook=_no_repeats, parse_constant=_no_constant)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """The blake3 of some bytes, 64 hex digits; of many bytes it is computed on all cores."""
    threads = blake3.AUTO if len(data) >= _BYTES_FOR_THREADS else 1
    return str(blake3(data, max_threads=threads).hexdigest())
