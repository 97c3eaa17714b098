"""Names that are legal and awkward: keys of objects, Unicode normal forms, percent escapes. Each is one video, found by
what is shown of it."""

import os
import unicodedata
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import boto3
import pytest
from s3_server import S3Server
from store_samples import publish
from web_server import WebServer

from sttm.corpus.listing import list_corpus, look_again
from sttm.errors import CorpusError, StoreError, VideoError
from sttm.store import maintenance
from sttm.store.catalog.view import CatalogView
from sttm.store.sources import absence
from sttm.store.store import Store
from sttm.urls import absolute_uri, redact_url
from sttm.video.file import read_video_file

KEYS = (
    *("plain/a.mp4", "x//b.mp4", "x///c.mp4", "/e.mp4", "/lead/d.mp4", "//lead2/d.mp4", "x/./k.mp4", "x/../l.mp4"),
    *("h#sh/f#1.mp4", "q?x=1/g?y=2&z.mp4", "p%20q/h%2Fi%zz.mp4", " sp ace / i .mp4", "tail /j.mp4", "a+b&c=d;e,f.mp4"),
    *("é/ü日本.mp4", "e\u0301/ü日本.mp4", "star*/m[1]?.mp4", "co::lon/n:o.mp4", "at@/p@q.mp4", "quote\"'`/p.mp4"),
    *("bs\\q.mp4", "~/r.mp4", "http://h/s?t.mp4", "s3://b/u.mp4", "v.mp4/w.mp4", "v.mp4"),
    *("new/x.mp4?versionId=1.mp4", "new/x?versionId=.mp4", "new?versionId=/y.mp4", "new/x.mp4"),
)


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    """URL of a bucket whose objects were written by another client than ours; each holds its own key."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="odd-names")
    for key in KEYS:
        client.put_object(Bucket="odd-names", Key=key, Body=key.encode())
    return "s3://odd-names"


def test_every_key_is_listed_once_and_shown_whole(bucket: str) -> None:
    refs = list_corpus(bucket)
    assert sorted(ref.uri for ref in refs) == sorted(f"{bucket}/{key}" for key in KEYS)
    assert len({ref.video_id for ref in refs}) == len(KEYS)
    assert [redact_url(ref.uri) for ref in refs] == [ref.uri for ref in refs]
    assert look_again([ref.uri for ref in refs]) == refs


@pytest.mark.parametrize("key", KEYS)
def test_an_object_is_found_and_read_by_exactly_what_is_shown(bucket: str, key: str) -> None:
    uri = f"{bucket}/{key}"
    (ref,) = list_corpus(uri)
    assert (ref.uri, absolute_uri(uri), ref.size_bytes) == (uri, uri, len(key.encode()))
    assert read_video_file(uri, 1000)[0].getvalue() == key.encode()


def test_a_version_of_an_object_is_read_by_its_id(s3_server: S3Server) -> None:
    client = boto3.client("s3")
    client.create_bucket(Bucket="versions")
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    ids = [client.put_object(Bucket="versions", Key="a.mp4", Body=body)["VersionId"] for body in (b"old", b"new")]
    found = [read_video_file(f"s3://versions/a.mp4?versionId={version}", 1000)[0].getvalue() for version in ids]
    assert found == [b"old", b"new"]
    assert read_video_file("s3://versions/a.mp4", 1000)[0].getvalue() == b"new"


def test_a_manifest_names_every_object_by_exactly_what_is_shown(bucket: str, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("uri\n" + "".join(f'"{bucket}/{key}"\n'.replace("\"'", '""\'') for key in KEYS))
    listed = {ref.uri: ref for ref in list_corpus(bucket)}
    assert list_corpus(str(manifest)) == [listed[f"{bucket}/{key}"] for key in KEYS]
    assert all(absence(f"{bucket}/{key}") is None for key in KEYS[::5])


@pytest.mark.parametrize(
    ("url", "keys"),
    [
        ("x/", {"x//b.mp4", "x///c.mp4", "x/./k.mp4", "x/../l.mp4"}),
        ("x//", {"x//b.mp4", "x///c.mp4"}),
        ("x//*.mp4", {"x//b.mp4"}),
        ("/", {"/e.mp4", "/lead/d.mp4", "//lead2/d.mp4"}),
        ("/lead", {"/lead/d.mp4"}),
        ("/lead/*", {"/lead/d.mp4"}),
        ("h#sh", {"h#sh/f#1.mp4"}),
        ("q?x=1/*", {"q?x=1/g?y=2&z.mp4"}),
        (" sp ace /", {" sp ace / i .mp4"}),
        ("v.mp4/", {"v.mp4/w.mp4"}),
        # A careless path to an ordinary key finds it under its own name, as it always did.
        ("plain//a.mp4", {"plain/a.mp4"}),
        ("/plain/", {"plain/a.mp4"}),
        ("./plain/../plain/a.mp4", {"plain/a.mp4"}),
    ],
)
def test_a_folder_of_objects_is_the_one_that_is_written(bucket: str, url: str, keys: set[str]) -> None:
    assert {ref.uri for ref in list_corpus(f"{bucket}/{url}")} == {f"{bucket}/{key}" for key in keys}


def test_relative_paths_in_a_manifest_keep_the_key_as_it_is_written(bucket: str) -> None:
    rows = ["x//b.mp4", "./v.mp4", "x/../l.mp4", "plain//a.mp4", "é/ü日本.mp4"]
    boto3.client("s3").put_object(Bucket="odd-names", Key="list.csv", Body="\n".join(["uri", *rows]).encode())
    found = [ref.uri for ref in list_corpus(f"{bucket}/list.csv")]
    boto3.client("s3").delete_object(Bucket="odd-names", Key="list.csv")
    assert found == [f"{bucket}/{key}" for key in ("x//b.mp4", "v.mp4", "x/../l.mp4", "plain/a.mp4", "é/ü日本.mp4")]


def test_ordinary_uris_and_ids_are_those_of_earlier_versions() -> None:
    """Stored artifacts are found by them."""
    for url, uri in {
        "s3://bucket/a/b.mp4": "s3://bucket/a/b.mp4",
        "s3a://bucket/a/b.mp4": "s3://bucket/a/b.mp4",
        "s3://bucket/a/": "s3://bucket/a",
        "/data//x/../a.mp4": "file:///data/a.mp4",
        "file:///data/./a b.mp4": "file:///data/a b.mp4",
        "memory://corpus/a.mp4": "memory:///corpus/a.mp4",
        "https://host/a.mp4?x=1": "https://host/a.mp4?x=1",
    }.items():
        assert absolute_uri(url) == uri


def test_only_what_may_be_secret_is_cut_from_a_url() -> None:
    for url, shown in {
        "https://me:pw@h/a.mp4?token=pw#x": "https://h/a.mp4",
        "s3://key:pw@bucket/a?b#c@d.mp4": "s3://bucket/a?b#c@d.mp4",
        "gs://bucket/a#1.mp4": "gs://bucket/a#1.mp4",
        "abfs://box@account.example/a?b.mp4": "abfs://box@account.example/a?b.mp4",
        "nosuch://me:pw@h/a.mp4?token=pw": "nosuch://h/a.mp4",
        "zip://a.mp4::https://me:pw@h/x.zip?token=pw": "zip://a.mp4::https://h/x.zip",
        "/data/a://b?c#d.mp4": "/data/a://b?c#d.mp4",
    }.items():
        assert redact_url(url) == shown


def test_a_stored_video_is_found_and_removed_by_what_is_shown_of_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    uris = [f"s3://bucket/{key}" for key in KEYS] + ["file:///data/a%20b #1?.mp4", "https://h/a.mp4?token=pw"]
    rows = [publish(store, str(number)) for number in range(len(uris))]
    rows = [replace(row, uri=uri) for row, uri in zip(rows, uris, strict=True)]
    store.catalog.append(rows)
    view = CatalogView(store.storage)
    for row in rows:
        assert store.find(redact_url(row.uri)).video_id == view.find(redact_url(row.uri)).video_id == row.video_id
    for row in rows:
        assert maintenance.remove(store, redact_url(row.uri)).video_id == row.video_id
    assert store.catalog.rows() == []


NFC, NFD = (unicodedata.normalize(kind, "Café Ångström.mp4") for kind in ("NFC", "NFD"))


def test_names_that_differ_in_their_normal_form_are_two_videos(tmp_path: Path) -> None:
    for name in (NFC, NFD):
        (tmp_path / name).write_bytes(name.encode())
    refs = {ref.name: ref for ref in list_corpus(str(tmp_path))}
    assert refs.keys() == {NFC, NFD}
    assert len({ref.video_id for ref in refs.values()}) == len({ref.uri for ref in refs.values()}) == 2
    for name, ref in refs.items():
        for asked in (str(tmp_path / name), ref.uri, f"file://{quote(str(tmp_path / name))}"):
            assert list_corpus(asked) == [ref]
        assert read_video_file(ref.uri, 1000)[0].getvalue() == name.encode()


@pytest.mark.parametrize(("there", "asked"), [(NFC, NFD), (NFD, NFC)])
def test_the_only_file_of_a_name_is_found_in_the_other_normal_form(tmp_path: Path, there: str, asked: str) -> None:
    folder = tmp_path / there.removesuffix(".mp4")
    folder.mkdir()
    (folder / there).write_bytes(b"x")
    other = tmp_path / asked.removesuffix(".mp4") / asked
    (ref,) = list_corpus(str(tmp_path))
    assert (ref.name, ref.uri) == (there, f"file://{folder}/{there}")
    (tmp_path / "list.csv").write_text(f"uri\n{other.relative_to(tmp_path)}\n")
    for corpus in (
        str(other),
        f"file://{other}",
        str(other.parent),
        f"{other.parent}/*.mp4",
        str(tmp_path / "list.csv"),
    ):
        assert list_corpus(corpus) == [ref]


def test_a_stored_video_is_found_in_the_other_normal_form_unless_that_names_two(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    view = CatalogView(store.storage, max_age_s=0)
    for name in (NFC, NFD):
        row = publish(store, name.removesuffix(".mp4"))
        for find in (store.find, view.find):
            assert find(name).video_id == row.video_id
    mixed = NFC.replace("é", "e\u0301")
    assert mixed not in (NFC, NFD)
    for find in (store.find, view.find):
        with pytest.raises(StoreError, match=r"is the name of 2 videos; use one of their ids"):
            find(mixed)
    maintenance.remove(store, NFD.removesuffix(".mp4"))
    for find in (store.find, view.find):
        assert find(NFD).name == find(mixed).name == NFC


def test_escapes_of_a_file_uri_are_resolved_unless_the_name_really_has_them(tmp_path: Path) -> None:
    plain, escaped = tmp_path / "a b#é?.mp4", tmp_path / quote("a b#é?.mp4")
    plain.write_bytes(b"plain")
    (ref,) = list_corpus(str(tmp_path))
    browser = f"file://{tmp_path}/{escaped.name}"
    (tmp_path / "list.csv").write_text(f"uri\n{browser}\n")
    localhost = f"file://localhost{tmp_path}/{escaped.name}"
    for corpus in (
        browser,
        localhost,
        str(tmp_path / "list.csv"),
        ref.uri,
        plain.as_uri(),
        f"{tmp_path.as_uri()}/a%20*",
    ):
        assert list_corpus(corpus) == [ref]
    assert ref.uri == f"file://{plain}"
    with pytest.raises(CorpusError, match="does not exist"):
        list_corpus(str(escaped))  # a path has no escapes

    escaped.write_bytes(b"escaped")
    assert {ref.uri for ref in list_corpus(str(tmp_path))} == {f"file://{plain}", browser}
    for uri, content in ((f"file://{plain}", b"plain"), (browser, b"escaped"), (escaped.as_uri(), b"escaped")):
        (ref,) = list_corpus(uri)
        assert read_video_file(ref.uri, 100)[0].getvalue() == content
    assert list_corpus(str(tmp_path / "list.csv"))[0].uri == browser


def test_escaped_bytes_that_are_not_utf8_name_the_file_of_these_bytes(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xe9t\xe9.mp4"
    Path(os.fsdecode(path)).write_bytes(b"x")
    assert list_corpus(f"file://{tmp_path}/%E9t%E9.mp4") == list_corpus(str(tmp_path))


def test_a_stored_file_is_found_as_a_browser_writes_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    view = CatalogView(store.storage, max_age_s=0)
    row = publish(store, "a b é")
    for asked in (
        "file:///videos/a%20b%20%C3%A9.mp4",
        "file://localhost/videos/a%20b%20%C3%A9.mp4",
        "/videos/a b é.mp4",
    ):
        assert store.find(asked).video_id == view.find(asked).video_id == row.video_id
    literal = publish(store, "a%20b%20%C3%A9")
    assert store.find("file:///videos/a%20b%20%C3%A9.mp4").video_id == literal.video_id
    assert store.find("file:///videos/a b é.mp4").video_id == row.video_id


def test_a_file_that_is_gone_is_not_another_of_a_similar_name(tmp_path: Path) -> None:
    """Spellings are for people who ask; what was stored is looked at by its exact name."""
    (tmp_path / "a b.mp4").write_bytes(b"x")
    gone = f"file://{tmp_path}/a%20b.mp4"
    assert look_again([gone])[0].size_bytes is None
    with pytest.raises(VideoError, match="missing"):
        read_video_file(gone, 100)


def test_white_space_around_a_cell_counts_only_if_a_file_has_it(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / " a.mp4").write_bytes(b"xx")
    (tmp_path / "b.mp4").write_bytes(b"xxx")
    (tmp_path / "list.csv").write_text("id,uri\n1, a.mp4\n2,a.mp4\n3, b.mp4 \n")
    assert [ref.size_bytes for ref in list_corpus(str(tmp_path / "list.csv"))] == [2, 1, 3]


def test_relative_rows_of_a_manifest_on_the_web_are_web_addresses() -> None:
    with WebServer({"list.csv": b"uri\na.mp4\n", "a.mp4": b"x"}) as server:
        (ref,) = list_corpus(server.url("list.csv"))
        assert ref.uri == server.url("a.mp4").partition("?")[0]
        assert ref.size_bytes == 1
