"""FORMAT.md says what the code does: its example runs on a stored artifact, and its tables name every field."""

import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from store_samples import make_cache

from sttm.certificate import ArithmeticCertificate, Certificate
from sttm.store.artifact import Manifest, Source, StoredFile
from sttm.store.catalog.arrow_rows import REQUIRED, SCHEMA
from sttm.store.facts import _DETAILS, Facts, Provenance, Sampling
from sttm.store.kv.file import encode_kv
from sttm.store.kv.scheme import SCHEMES
from sttm.store.store import Store

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "sttm" / "store" / "FORMAT.md").read_text()


def test_the_example_reads_what_our_reader_reads(tmp_path: Path) -> None:
    root = shutil.copytree(ROOT / "tests" / "data" / "golden_v1" / "store", tmp_path / "store")
    store = Store.open(root)
    row = store.find("clip-int8")
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    found: dict[str, Any] = {"root": root, "identity": row.identity}
    exec(example, found)
    cache = store.load_kv(row.identity)
    assert torch.equal(found["keys"].bfloat16(), cache.keys[0])
    assert torch.equal(found["values"].bfloat16(), cache.values[0])
    assert found["tokens"].num_rows == len(cache.visual)


def names() -> list[str]:
    header = encode_kv(make_cache(), "int4").header
    tensors = {placed.part.name for region in header.layout.regions for placed in region.tensors}
    parts = {name.rpartition(".")[2] for name in tensors if name.startswith("layers")}
    kinds = (Manifest, Source, StoredFile, Facts, Sampling, Provenance, Certificate, ArithmeticCertificate)
    columns = {*SCHEMA.names, *re.findall(r"\w+", "frame y0 x0 y1 x1 patches index seconds vector")}
    head = {name for name in tensors if name.startswith("head") and not name.endswith("pad")}
    layout = {name for name in header.layout.__dict__ if name != "regions"}
    known = {*head, *parts, *layout, *header._record(), *columns, *SCHEMES, *_DETAILS}
    return sorted(known | {field.name for kind in kinds for field in fields(kind)})


@pytest.mark.parametrize("name", names())
def test_every_stored_name_is_described(name: str) -> None:
    assert f"`{name}`" in TEXT


def test_the_columns_that_no_program_may_leave_out_are_named() -> None:
    assert f"({', '.join(f'`{name}`' for name in REQUIRED)})" in TEXT.replace("\n  ", " ")


def test_the_described_sizes_of_groups_are_those_of_the_code() -> None:
    groups = {name: (scheme.key_group, scheme.value_group) for name, scheme in SCHEMES.items() if name != "exact"}
    assert groups == {"int8": (128, 0), "k8v4": (128, 32), "int4": (64, 64)}, "change FORMAT.md too"
