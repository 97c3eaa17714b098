"""What a manifest records of the making: typed when it is read, and one JSON text for old and new programs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_samples import make_cache, make_tokens, recipe_for, source_for

from sttm.certificate import ArithmeticCertificate, Certificate
from sttm.store.artifact import manifest_key
from sttm.store.facts import Facts, Provenance, Sampling, read_facts
from sttm.store.kv.file import encode_kv
from sttm.store.sealed import read_sealed
from sttm.store.store import Store

# The very JSON that the first programs wrote.
FIRST: dict[str, dict[str, Any]] = {
    "sampling": {"seconds": [0.0, 0.5], "duration_s": 1.0, "decoder": "decord 0.6.0", "warnings": ["1 frame is lost"]},
    "provenance": {
        **{"model": "tiny", "commit": None, "torch": "2.11.0", "transformers": "5.17.0"},
        **{"device": "cpu", "chunk_tokens": None},
    },
    "certificate": {"kl_mean": 1e-6, "kl_max": 2e-6, "top1_agreement": 1.0, "compared": 12},
}
DETAILS = {
    **FIRST,
    "sampling": {**FIRST["sampling"], "frames_asked": 3, "frames_left_out": 1},
    "arithmetic": {"reference": "bfloat16", "video": "c", **FIRST["certificate"]},
}
FACTS = Facts(
    *(210, 63),
    sampling=Sampling((0.0, 0.5), 1.0, "decord 0.6.0", ("1 frame is lost",), frames_asked=3, frames_left_out=1),
    provenance=Provenance("tiny", None, "2.11.0", "5.17.0", "cpu"),
    certificate=Certificate(1e-6, 2e-6, 1.0, 12),
    arithmetic=ArithmeticCertificate("bfloat16", "c", 1e-6, 2e-6, 1.0, 12),
)


def test_facts_are_stored_under_the_keys_that_every_program_reads(tmp_path: Path) -> None:
    store, cache = Store.open(tmp_path, create=True), make_cache()
    row = store.publish(recipe_for(), "c", source_for(), encode_kv(cache, "int8"), make_tokens(cache), FACTS)
    assert read_sealed(store.storage, manifest_key(row.identity), "")["facts"]["details"] == DETAILS
    assert store.manifest(row.identity).facts == FACTS
    assert (row.frames, row.frames_asked, row.frames_left_out) == (2, 3, 1)
    assert (row.duration_s, row.kl_mean, row.top1_agreement) == (1.0, 1e-6, 1.0)


def test_facts_of_the_first_programs_read_with_unknown_counts_of_frames() -> None:
    found = read_facts({"tokens_before": 210, "tokens_after": 63, "details": FIRST})
    assert found == replace(FACTS, sampling=replace(FACTS.sampling, frames_asked=0, frames_left_out=0), arithmetic=None)


@pytest.mark.parametrize("section", DETAILS)
def test_a_section_that_is_missing_reads_as_unknown(section: str) -> None:
    record = {"tokens_before": 210, "tokens_after": 63}
    found = read_facts({**record, "details": {name: said for name, said in DETAILS.items() if name != section}})
    assert getattr(found, section) == getattr(Facts(0, 0), section)
    assert read_facts(record) == Facts(210, 63)


def test_fields_that_are_missing_odd_or_of_a_newer_program_spoil_no_others() -> None:
    provenance = {"model": "tiny", "torch": 2, "chunk_tokens": -1, "flash_attention": True}
    details = {"provenance": provenance, "certificate": {"kl_mean": 0.0}, "converted_from": 1, "weather": {}}
    found = read_facts({"tokens_before": 210, "tokens_after": 63, "details": details})
    assert found == Facts(210, 63, provenance=Provenance(model="tiny"))


def test_a_section_outside_its_place_is_refused() -> None:
    with pytest.raises(TypeError, match="facts is not an object with its fields"):
        read_facts({"tokens_before": 210, "tokens_after": 63, "sampling": {}})
