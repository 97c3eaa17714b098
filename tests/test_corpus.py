"""Listing a corpus: what is found, in which order, under which ids, and clear errors when it cannot be listed."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media import encode_video
from s3_server import S3Server

from sttm.corpus.listing import VideoRef, list_corpus, look_again
from sttm.errors import CorpusError, VideoError
from sttm.urls import redact_url
from sttm.video.decode import VideoConfig, read_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.webm", "deep/er/c.MKV", "notes.txt", ".hidden.mp4", ".trash/d.mp4", "deep/._c.mkv"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "videos"


def names(refs: list[VideoRef]) -> list[str]:
    return [ref.name for ref in refs]


def write_manifest(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as spreadsheets write it
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_folder_is_listed_deeply_in_order_without_hidden_or_other_files(folder):
    refs = list_corpus(str(folder))
    assert [ref.uri for ref in refs] == [f"file://{folder}/{name}" for name in ("a.webm", "b.mp4", "deep/er/c.MKV")]
    assert [ref.size_bytes for ref in refs] == [6, 5, 13]
    assert names(list_corpus(f"file://{folder}/", limit=2)) == ["a.webm", "b.mp4"]


def test_relative_and_dotted_paths_name_the_same_video(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert list_corpus("deep/../b.mp4") == list_corpus(f"{folder}/b.mp4") == [list_corpus(".")[1]]


def test_linked_folders_are_followed_and_loops_are_not(folder):
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "z.mp4").write_bytes(b"z")
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "linked.mp4").symlink_to(folder / "b.mp4")
    refs = list_corpus(str(folder))
    assert names(refs) == ["a.webm", "b.mp4", "c.MKV", "z.mp4", "linked.mp4"]
    assert (refs[4].size_bytes, refs[4].version) == (refs[1].size_bytes, refs[1].version)
    assert refs[4] in list_corpus(f"{folder}/*.mp4")


def test_broken_link_is_listed_and_fails_alone(folder):
    (folder / "x.mp4").symlink_to(folder / "gone.mp4")
    ref = list_corpus(str(folder))[-1]
    assert (ref.name, ref.size_bytes, ref.version) == ("x.mp4", None, "")
    with pytest.raises(VideoError, match="missing"):
        read_video(ref, VideoConfig())


def test_glob_takes_videos_and_any_extension_it_names(folder):
    assert names(list_corpus(f"{folder}/*")) == ["a.webm", "b.mp4"]
    assert names(list_corpus(f"{folder}/**/*.MKV")) == ["c.MKV"]
    assert names(list_corpus(f"{folder}/*.txt")) == ["notes.txt"]
    assert names(list_corpus(f"{folder}/.h*")) == [".hidden.mp4"]


def test_path_with_glob_characters_that_exists_is_taken_literally(folder):
    (folder / "clip[1].mp4").write_bytes(b"x")
    (folder / "a::b #?%20ü.mp4").write_bytes(b"x")
    for name in ("clip[1].mp4", "a::b #?%20ü.mp4"):
        (ref,) = list_corpus(f"{folder}/{name}")
        assert list_corpus(ref.uri) == [ref]
        assert ref in list_corpus(str(folder))


@pytest.mark.parametrize("name", [b"a\xff.mp4", b"\xe9t\xe9/a.mp4", b"a%uDC.mp4"])
def test_name_that_is_not_utf8_is_text_and_opens_again(tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(os.fsdecode(path)).write_bytes(encode_video(count=3))
    (ref,) = refs = list_corpus(str(tmp_path))
    assert "".join((ref.uri, ref.name, ref.video_id)).encode()
    assert list_corpus(ref.uri) == list_corpus(os.fsdecode(path)) == list_corpus(f"{tmp_path}/**/*.mp4") == refs
    assert look_again([ref.uri])[0].version == ref.version
    assert len(read_video(ref, VideoConfig(fps=10)).pixels) == 3
    with pytest.raises(VideoError) as caught:
        read_video(ref, VideoConfig(max_source_bytes=1))
    assert str(caught.value).encode()


def test_single_file_may_have_any_extension(folder):
    (ref,) = list_corpus(f"{folder}/notes.txt")
    assert ref.name == "notes.txt"


def test_ids_are_readable_stable_and_distinct(folder):
    ids = [ref.video_id for ref in list_corpus(str(folder))]
    assert ids == [ref.video_id for ref in list_corpus(str(folder))]
    assert VideoRef.from_uri("s3://bucket/x/My clip (1).mp4").video_id == "My_clip_1-3b279163c064"  # never changes
    assert VideoRef.from_uri("/x/a.mp4").video_id != VideoRef.from_uri("/y/a.mp4").video_id
    assert VideoRef.from_uri("/x/" + "é/" * 50 + "ü" * 80 + ".mp4").video_id.startswith("video-")


def test_version_changes_with_the_file(folder):
    before = list_corpus(f"{folder}/b.mp4")[0]
    os.utime(folder / "b.mp4", ns=(0, 1_700_000_000_123_000_000))
    after = list_corpus(f"{folder}/b.mp4")[0]
    assert before.version != after.version == "mtime:1700000000.123"
    assert {**asdict(before), "version": ""} == {**asdict(after), "version": ""}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json", ".jsonl"])
def test_manifest_keeps_row_order_ids_and_missing_files(folder, suffix):
    rows = [
        {"uri": "b.mp4", "id": "second", "note": "x"},
        {"uri": f"file://{folder}/a.webm", "id": "", "note": "y"},
        {"uri": "../videos/b.mp4", "id": "second", "note": "again"},
        {"uri": "nosuch/gone.mp4", "id": "7", "note": "z"},
        {"uri": "nosuch://host/b.mp4", "id": "other", "note": "z"},
    ]
    refs = list_corpus(write_manifest(folder / f"list{suffix}", rows))
    assert names(refs) == ["b.mp4", "a.webm", "gone.mp4", "b.mp4"]
    assert [ref.video_id for ref in refs] == ["second", refs[1].video_id, "7", "other"]
    assert refs[1] == list_corpus(f"{folder}/a.webm")[0]
    assert [ref.size_bytes for ref in refs] == [5, 6, None, None]
    assert [bool(ref.version) for ref in refs] == [True, True, False, False]
    for ref, code in zip(refs[2:], ("missing", "unreadable"), strict=True):
        with pytest.raises(VideoError, match=code):
            read_video(ref, VideoConfig())


def test_manifest_limit_counts_videos(folder):
    manifest = write_manifest(folder / "list.csv", [{"uri": u} for u in ("b.mp4", "b.mp4", "a.webm", "c.mp4")])
    assert names(list_corpus(manifest, limit=2)) == ["b.mp4", "a.webm"]


def test_manifest_row_that_names_a_folder_fails_alone(folder):
    refs = list_corpus(write_manifest(folder / "list.csv", [{"uri": "deep"}, {"uri": "b.mp4"}]))
    assert [ref.size_bytes for ref in refs] == [None, 5]


BAD_ROWS = {
    "a name too long": ("a" * 300 + ".mp4", "unreadable"),
    "a name with a NUL": ("a\0.mp4", "unreadable"),
    "half a character": ("\ud800.mp4", "missing"),
    "a file taken for a folder": ("b.mp4/a.mp4", "unreadable"),
    "no address": ("http://[/a.mp4", "unreadable"),
    "an unknown protocol": ("nosuch://host/a.mp4", "unreadable"),
    "an archive that is none": ("zip://a.mp4", "unreadable"),
    "no credentials": ("s3a://bucket/a.mp4", None),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_manifest_row_fails_alone(folder, monkeypatch, kind):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    uri, code = BAD_ROWS[kind]
    good, bad = list_corpus(write_manifest(folder / "list.jsonl", [{"uri": "b.mp4"}, {"uri": uri}]))
    assert (good.size_bytes, bad.size_bytes, bad.version) == (5, None, "")
    assert "".join((bad.uri, bad.name, bad.video_id)).encode()
    with pytest.raises(VideoError if code else OSError, match=code):
        read_video(bad, VideoConfig())


@pytest.mark.parametrize("bad", ["../up", "a/b", ".", "..", ".x", "-x", "a b", "ü", "a\nb", "x" * 129])
def test_unsafe_id_is_refused(folder, bad):
    manifest = write_manifest(folder / "list.jsonl", [{"uri": "b.mp4", "id": bad}])
    with pytest.raises(CorpusError, match=r"b\.mp4 is not usable"):
        list_corpus(manifest)


BAD_ROWS_OF_A_MANIFEST = {
    "one id for two videos": (
        "list.csv",
        b"uri,id\na.webm,same\nb.mp4,same\n",
        r"list\.csv: row 2: video id 'same' is given to two videos: .*a\.webm and .*b\.mp4",
    ),
    "two ids for one video": (
        "list.csv",
        b"uri,id\na.webm,one\na.webm,two\n",
        r"list\.csv: row 2: .*a\.webm is listed with two ids: 'one' and 'two'",
    ),
    "an unsafe id": ("list.csv", b"uri,id\na.webm,1\nb.mp4,../up\n", r"row 2: video id '\.\./up' of .*b\.mp4"),
    "no uri": ("list.csv", b"uri,id\na.webm,1\n,2\n", r"list\.csv: row 2: it has no uri"),
    "a number for a uri": ("list.jsonl", b'{"uri": "a.webm"}\n{"uri": 7}\n', r"list\.jsonl: row 2: it has no uri"),
    "a broken line": ("list.jsonl", b'{"uri": "a.webm"}\n{"uri', r"list\.jsonl: row 2: the line is not JSON"),
    "no object": ("list.json", b'[{"uri": "a.webm"}, ["b.mp4"]]', r"list\.json: row 2: a row is a JSON object"),
    "null": ("list.json", b'[{"uri": "a.webm"}, {"uri": null}]', r"list\.json: row 2: it has no uri"),
    "too many cells": ("list.csv", b"uri,id\na.webm,1\nb.mp4,2,3\n", r"row 2: the line has more cells"),
    "a huge cell": ("list.csv", b"uri,id\na.webm,1\nb.mp4," + b"x" * 200_000, r"row 2: a cell has 200000 characters"),
    "another encoding": ("list.csv", b"uri,id\na.webm,1\n\xe9.mp4,2\n", r"row 2: the line is not UTF-8; save"),
    "a quote that is not closed": ("list.csv", b'uri,id\na.webm,1\n"b.mp4,2\n', r"row 2: a quote is opened and never"),
}


@pytest.mark.parametrize("kind", BAD_ROWS_OF_A_MANIFEST)
def test_a_row_that_names_no_video_costs_no_other_and_fails_with_its_cause(folder, kind):
    name, data, message = BAD_ROWS_OF_A_MANIFEST[kind]
    (folder / name).write_bytes(data)
    before, bad = list_corpus(f"{folder}/{name}")
    assert (before.name, before.fault) == ("a.webm", "")
    assert (bad.uri, bad.size_bytes) == (f"file://{folder}/{name}:row-2", None)
    with pytest.raises(VideoError, match=f"bad_row: .*{message}"):
        read_video(bad, VideoConfig())
    (folder / name).write_bytes(data + (b'\n{"uri": "b.mp4"}\n' if name.endswith("l") else b"\nb.mp4,9\n"))
    if not name.endswith(".json"):
        assert list_corpus(f"{folder}/{name}")[:2] == [before, bad]
        assert list_corpus(f"{folder}/{name}")[2].name == "b.mp4"


def test_an_error_row_of_a_manifest_is_made_again_only_if_its_fault_changes(folder):
    manifest = folder / "list.csv"
    manifest.write_text("uri,id\na.webm,-x\nb.mp4,2\n")
    first = list_corpus(str(manifest))[0]
    assert list_corpus(str(manifest))[0] == first
    manifest.write_text("uri,id\na.webm,-y\nb.mp4,2\n")
    second = list_corpus(str(manifest))[0]
    assert (second.uri, second.video_id) == (first.uri, first.video_id)
    assert second.version != first.version


BAD_MANIFESTS = {
    "no uri column": ("list.csv", b"url,id\na.mp4,1\n", r"no column 'uri'; columns found: url, id"),
    "nothing at all": ("list.csv", b"", r"no column 'uri'; columns found: none"),
    "no uri in any row": ("list.csv", b"uri,id\n,1\n,2\n", r"row 1: it has no uri"),
    "a number for a uri": ("list.jsonl", b'{"uri": 7}', r"row 1: it has no uri"),
    "broken line": ("list.jsonl", b'{"uri', r"list\.jsonl: row 1: the line is not JSON"),
    "no object": ("list.jsonl", b'["b.mp4"]', r"list\.jsonl: row 1: a row is a JSON object .* this is a list"),
    "no text": ("list.jsonl", b"\xff\xfe\x00", r"row 1: the line is not JSON"),
    "another encoding": (
        "list.csv",
        "uri\nété.mp4".encode("latin-1"),
        r"cannot be parsed as \.csv: .*; save it as UTF-8",
    ),
    "no Parquet": ("list.parquet", b"PAR1 not really", r"cannot be parsed"),
    "no rows": ("list.csv", b"uri\n", r"no videos in"),
}


@pytest.mark.parametrize("kind", BAD_MANIFESTS)
def test_bad_manifest_is_explained(folder, kind):
    name, data, message = BAD_MANIFESTS[kind]
    (folder / name).write_bytes(data)
    with pytest.raises(CorpusError, match=message) as caught:
        list_corpus(f"{folder}/{name}")
    assert name in str(caught.value)


def test_nothing_found_is_explained(tmp_path):
    for name in ("", " "):  # as of a variable that is not set; not the current folder
        with pytest.raises(CorpusError, match="the corpus has an empty name"):
            list_corpus(name)
    with pytest.raises(CorpusError, match=r"nothing-here does not exist"):
        list_corpus(f"{tmp_path}/nothing-here")
    for url in (str(tmp_path), f"{tmp_path}/*", f"{tmp_path}/none/*.mp4"):
        with pytest.raises(CorpusError, match=r"no videos in .*looked for .*\.mp4"):
            list_corpus(url)
    with pytest.raises(CorpusError, match=r"limit 0 is not positive"):
        list_corpus(str(tmp_path), limit=0)


def test_storage_out_of_reach_is_explained(monkeypatch):
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "MAX_ATTEMPTS": "1", "ACCESS_KEY_ID": "me"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(CorpusError, match=r"s3://bucket/x cannot be listed: \w+; check the network") as caught:
        list_corpus("s3://bucket/x")
    assert "hunter2" not in str(caught.value)


def test_unreadable_folder_inside_is_an_error_not_a_gap(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):  # root may read everything
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CorpusError, match=r"may not be read \(.*deep\)"):
        list_corpus(str(folder))


@pytest.mark.parametrize("url", ["nosuch://me:hunter2@host/x.mp4?token=hunter2", "://", "s4://x"])
def test_unknown_protocol_is_explained_without_secrets(url):
    with pytest.raises(CorpusError) as caught:
        list_corpus(url)
    assert "hunter2" not in str(caught.value)


def test_messages_hide_user_info_and_query():
    assert redact_url("https://me:secret@host:80/a/b.mp4?token=secret#x") == "https://host:80/a/b.mp4"
    assert redact_url("s3://key:secret@bucket/a@b.mp4") == "s3://bucket/a@b.mp4"
    assert redact_url("/data/a?b#c@d.mp4") == "/data/a?b#c@d.mp4"


def test_memory_corpus_is_listed_and_read():
    fs = fsspec.filesystem("memory")
    fs.pipe("/corpus/x/a.mp4", encode_video(count=3))
    fs.pipe("/corpus/list.csv", b"uri\nx/a.mp4\n/corpus/x/a.mp4\n")
    (ref,) = list_corpus("memory://corpus")
    assert ref.uri == "memory:///corpus/x/a.mp4"
    assert list_corpus("memory://corpus/list.csv") == list_corpus("memory://corpus/*/*.mp4") == [ref]
    assert len(read_video(ref, VideoConfig(fps=10)).pixels) == 3


def test_s3_corpus_sees_new_files_and_changed_ones(s3_server: S3Server):
    root = s3_server.new_root()
    fs = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    fs.pipe(f"{root}/x/a.mp4", encode_video(count=3))
    first = list_corpus(root)
    fs.pipe(f"{root}/x/b.mp4", b"")
    fs.pipe(f"{root}/x/a.mp4", encode_video(count=4))
    fs.pipe(f"{root}/list.csv", b"uri\nx/a.mp4\nx/gone.mp4\n")
    second, listed = list_corpus(root), list_corpus(f"{root}/list.csv")
    assert names(first) == ["a.mp4"]
    assert names(second) == ["a.mp4", "b.mp4"] == names(list_corpus(f"{root}/*/*.mp4"))
    assert first[0].version.startswith("etag:")
    assert first[0].version != second[0].version
    assert listed[0] == second[0]
    assert listed[1].size_bytes is None
    assert len(read_video(second[0], VideoConfig(fps=10)).pixels) == 4
    for ref, code in ((second[1], "empty_file"), (listed[1], "missing")):
        with pytest.raises(VideoError, match=code):
            read_video(ref, VideoConfig())
    with pytest.raises(CorpusError, match="does not exist"):
        list_corpus("s3://nosuchbucket/x")
