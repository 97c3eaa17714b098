"""Tables of videos as other programs write them: odd column types, and a table in many Parquet parts."""

import io
import json
from decimal import Decimal
from pathlib import Path

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media import encode_video
from s3_server import S3Server

import sttm
from jobs.answering.questions import read_questions
from sttm.corpus.files import VIDEO_EXTENSIONS
from sttm.corpus.listing import VideoRef, list_corpus, scan_corpus
from sttm.errors import CorpusError, VideoError
from sttm.video.decode import VideoConfig, read_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of four videos, `videos/0.mp4` to `videos/3.mp4`."""
    (tmp_path / "videos").mkdir()
    for number in range(4):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(b"x" * (number + 1))
    return tmp_path


def uris(folder: Path, *numbers: int) -> list[str]:
    return [f"file://{folder}/videos/{number}.mp4" for number in numbers or range(4)]


def ids(refs: list[VideoRef]) -> list[str]:
    return [ref.video_id for ref in refs]


IDS = {
    "floats because of a null": (pa.array([1, None, 3, 12345678901], pa.float64()), ["1", "3", "12345678901"]),
    "NaN": (pa.array([1.0, float("nan"), 3.5, 2.0]), ["1", "3.5", "2"]),
    "half precision": (pa.array([1, None, 3, 4], pa.float32()), ["1", "3", "4"]),
    "decimals": (pa.array([Decimal("1.00"), None, Decimal("3.50"), Decimal("4.00")]), ["1", "3.50", "4"]),
    "whole numbers": (pa.array([1, None, 3, 2**60], pa.int64()), ["1", "3", str(2**60)]),
    "bytes": (pa.array([b"one", None, b"three", b"f_r"], pa.binary()), ["one", "three", "f_r"]),
    "large bytes": (pa.array([b"one", None, b"three", b"f_r"], pa.large_binary()), ["one", "three", "f_r"]),
    "bytes of one size": (pa.array([b"one", None, b"two", b"six"], pa.binary(3)), ["one", "two", "six"]),
    "a dictionary": (pa.array(["a", None, "c", "d"]).dictionary_encode(), ["a", "c", "d"]),
    "large text": (pa.array(["a", None, "c", "d"], pa.large_string()), ["a", "c", "d"]),
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("uri_type", [pa.string(), pa.large_string(), pa.binary(), "dictionary"])
def test_ids_and_uris_of_every_column_type_are_text(folder: Path, kind: str, uri_type: pa.DataType | str) -> None:
    column, expected = IDS[kind]
    addresses = pa.array(uris(folder))
    addresses = addresses.dictionary_encode() if uri_type == "dictionary" else addresses.cast(uri_type)
    table = pa.table({"id": column})
    pq.write_table(table.append_column("uri", addresses), folder / "list.parquet")
    refs = list_corpus(f"{folder}/list.parquet")
    assert [ref.uri for ref in refs] == uris(folder)
    assert [ref.fault for ref in refs] == [""] * 4
    (derived,) = list_corpus(uris(folder)[1])
    assert ids(refs) == [expected[0], derived.video_id, *expected[1:]]


def test_ids_are_the_same_in_json_and_parquet(folder: Path) -> None:
    rows = [{"uri": uri, "id": given} for uri, given in zip(uris(folder), (1.0, None, 3.0, 4.0), strict=True)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "list.json").write_text(json.dumps(rows))
    (folder / "nan.json").write_text('[{"uri": "videos/1.mp4", "id": NaN}, {"uri": "videos/0.mp4", "id": 1.0}]')
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    first = list_corpus(f"{folder}/list.parquet")
    assert ids(first)[::2] == ["1", "3"]
    assert list_corpus(f"{folder}/list.jsonl") == list_corpus(f"{folder}/list.json") == first
    assert list_corpus(f"{folder}/nan.json") == [first[1], first[0]]


def test_a_question_table_names_a_video_by_the_id_that_the_manifest_gave(folder: Path) -> None:
    numbers = pa.array([1, None, 3, 4], pa.float64())
    given = pa.array([float("nan"), 2, 3, 4], pa.float64())
    pq.write_table(pa.table({"video": numbers, "question": [b"Why?"] * 4, "id": given}), folder / "questions.parquet")
    found = read_questions(f"{folder}/questions.parquet")
    assert [(question.id, question.video, question.text) for question in found] == [
        ("1", "1", "Why?"),
        ("2", "", ""),
        ("3", "3", "Why?"),
        ("4", "4", "Why?"),
    ]
    assert [question.fault for question in found] == ["", "no video", "", ""]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (pa.array([b"videos/0.mp4", b"\xff\xfe"]), r"row 2: uri is b'\\xff\\xfe', which is not text in UTF-8"),
        (pa.array(["videos/0.mp4", None]), r"row 2: it has no uri"),
        (pa.array(["videos/0.mp4", " "]), r"row 2: it has no uri"),
    ],
)
def test_a_parquet_row_without_a_usable_uri_fails_alone(folder: Path, uri: pa.Array, says: str) -> None:
    pq.write_table(pa.table({"uri": uri}), folder / "list.parquet")
    good, bad = list_corpus(f"{folder}/list.parquet")
    assert (good.uri, bad.name) == (uris(folder)[0], "list.parquet row 2")
    with pytest.raises(VideoError, match=f"bad_row: .*{says}"):
        read_video(bad, VideoConfig())


def spark_folder(folder: Path, name: str = "list.parquet", **partition: str) -> Path:
    """A table of the four videos in two parts and an empty one, with all the files that Spark writes around them."""
    table = folder / name
    parts = table.joinpath(*(f"{key}={value}" for key, value in partition.items()))
    parts.mkdir(parents=True)
    rows = pa.table({"uri": uris(folder), "id": ["a", "b", "c", "d"]})
    for number, part in enumerate((rows[:2], rows[2:], rows[:0])):
        file = f"part-0000{number}-8f2e-c000.snappy.parquet"
        pq.write_table(part, parts / file)
        (parts / f".{file}.crc").write_bytes(b"crc")
    for marker in ("_SUCCESS", "._SUCCESS.crc"):
        (table / marker).write_bytes(b"")
    for summary in ("_metadata", "_common_metadata"):
        pq.write_table(rows[:0], table / summary)
    (table / "_temporary" / "0").mkdir(parents=True)
    pq.write_table(rows, table / "_temporary" / "0" / "part-9.parquet")
    return table


@pytest.mark.parametrize("name", ["list.parquet", "list", "list.csv"])
def test_a_folder_that_spark_wrote_is_one_manifest(folder: Path, name: str) -> None:
    table = spark_folder(folder, name)
    refs = list_corpus(str(table))
    assert ([ref.uri for ref in refs], ids(refs)) == (uris(folder), ["a", "b", "c", "d"])
    for url in (f"{table}/", f"file://{table}", f"{table}/*.parquet", f"{table}/part-*", f"{folder}/**/part-*.parquet"):
        assert list_corpus(url) == refs
    assert list_corpus(str(table), limit=3) == refs[:3]


def test_parts_in_partition_folders_are_one_manifest_with_their_columns(folder: Path) -> None:
    table = spark_folder(folder, day="2026-11-30", hour="0")
    assert ids(list_corpus(str(table))) == ["a", "b", "c", "d"]
    rows = pa.table({"uri": uris(folder), "id": ["w x", "w x", "z", None]})
    pq.write_to_dataset(rows.slice(2), folder / "by_id", partition_cols=["id"])
    refs = list_corpus(f"{folder}/by_id")
    assert {ref.uri: ref.video_id for ref in refs}[uris(folder)[2]] == "z"
    assert {ref.uri for ref in refs} == set(uris(folder, 2, 3))


def test_parts_on_s3_are_one_manifest(folder: Path, s3_server: S3Server) -> None:
    table, root = spark_folder(folder), s3_server.new_root()
    fs = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    for path in table.rglob("*"):
        if path.is_file():
            fs.pipe(f"{root}/nightly/{path.relative_to(table)}", path.read_bytes())
    boto3.client("s3").put_object(Bucket="bucket", Key=f"{root}/nightly/".removeprefix("s3://bucket/"), Body=b"")
    fs.pipe(f"{root}/nightly/part-00003.parquet", b"")
    assert list_corpus(f"{root}/nightly") == list_corpus(f"{root}/nightly/*.parquet") == list_corpus(str(table))
    fs.pipe(f"{root}/nightly/a.mp4", b"x")
    assert scan_corpus(f"{root}/nightly").left_out_line.startswith("8 files left out, ")
    assert scan_corpus(f"{root}/nightly").left_out == {".parquet": 5, "": 3}
    out = io.BytesIO()
    pq.write_table(pa.table({"uri": ["videos/a.mp4", "./b.mp4"]}), out)
    fs.pipe(f"{root}/relative/part-0.parquet", out.getvalue())
    assert [ref.uri for ref in list_corpus(f"{root}/relative/")] == [f"{root}/videos/a.mp4", f"{root}/b.mp4"]


def test_a_folder_with_a_video_is_a_folder_of_videos(folder: Path) -> None:
    table = spark_folder(folder, "videos/about")
    listing = scan_corpus(f"{folder}/videos")
    assert [ref.uri for ref in listing.refs] == uris(folder)
    assert listing.left_out_line.startswith("7 files left out, whose endings are not those of videos: ")
    (table / "x.mp4").write_bytes(b"x")
    assert [ref.name for ref in list_corpus(str(table))] == ["x.mp4"]


def test_a_relative_path_counts_from_where_a_single_file_would_lie(folder: Path) -> None:
    rows = pa.table({"uri": ["videos/0.mp4", "videos/2.mp4"]})
    pq.write_table(rows, folder / "single.parquet")
    (folder / "parts.parquet").mkdir()
    pq.write_table(rows, folder / "parts.parquet" / "part-0.parquet")
    assert list_corpus(f"{folder}/parts.parquet") == list_corpus(f"{folder}/single.parquet")
    assert [ref.uri for ref in list_corpus(f"{folder}/parts.parquet")] == uris(folder, 0, 2)
    assert list_corpus(f"{folder}/s*.parquet") == list_corpus(f"{folder}/single.parquet")


def test_one_bad_row_in_one_part_costs_one_row(folder: Path) -> None:
    table = spark_folder(folder)
    pq.write_table(pa.table({"uri": [None, "videos/3.mp4"], "id": ["e", "f"]}), table / "part-00009.parquet")
    refs = list_corpus(str(table))
    assert ids(refs)[:4] == ["a", "b", "c", "d"]
    assert [bool(ref.fault) for ref in refs] == [False] * 4 + [True, True]
    assert refs[4].uri == f"file://{table}/part-00009.parquet:row-1"
    assert "is listed with two ids: 'd' and 'f'" in refs[5].fault


@pytest.mark.parametrize(
    ("log", "kind"), [("_delta_log/0.json", "Delta Lake"), ("metadata/v1.metadata.json", "Iceberg")]
)
def test_a_table_whose_log_says_which_parts_are_valid_is_refused(folder: Path, log: str, kind: str) -> None:
    table = spark_folder(folder)
    (table / log).parent.mkdir()
    (table / log).write_text("{}")
    with pytest.raises(
        CorpusError, match=rf"list\.parquet is a table of {kind}; write its rows as plain Parquet files"
    ):
        list_corpus(str(table))


def test_a_bad_row_becomes_an_error_row_of_the_run(folder: Path) -> None:
    (folder / "videos" / "0.mp4").write_bytes(encode_video(count=3))
    (folder / "list.csv").write_text("uri,id\nvideos/0.mp4,good\n,empty\nvideos/1.mp4,../up\n")
    rows = sttm.index(folder / "list.csv", folder / "store", "tiny")
    assert [(row.name, row.status, row.error_code) for row in rows] == [
        ("0.mp4", "ok", ""),
        ("list.csv row 2", "error", "bad_row"),
        ("list.csv row 3", "error", "bad_row"),
    ]
    assert "list.csv: row 3: video id '../up' of " in rows[2].error_message
    assert sttm.index(folder / "list.csv", folder / "store", "tiny") == rows
    (folder / "list.csv").write_text("uri,id\nvideos/0.mp4,good\nvideos/0.mp4,good\n")
    assert sttm.index(folder / "list.csv", folder / "store", "tiny") == rows[:1]


def test_parts_that_are_no_table_of_videos_are_explained(folder: Path) -> None:
    (folder / "other").mkdir()
    pq.write_table(pa.table({"a": [1]}), folder / "other" / "part-0.parquet")
    with pytest.raises(CorpusError, match=r"other/part-0\.parquet has no column 'uri'; columns found: a"):
        list_corpus(f"{folder}/other")
    (folder / "other" / "part-1.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(CorpusError, match=r"part-"):
        list_corpus(f"{folder}/other/*.parquet")


@pytest.mark.parametrize("ending", [".m2t", ".3g2", ".f4v", ".divx", ".mk3d", ".qt", ".mod", ".tod", ".insv", ".MOD"])
def test_endings_of_cameras_and_recorders_are_those_of_videos(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"clip{ending}").write_bytes(b"x")
    assert [ref.name for ref in list_corpus(str(tmp_path))] == [f"clip{ending}"]
    assert ending.lower() in VIDEO_EXTENSIONS


def test_files_left_out_are_counted_by_ending_in_one_line(folder: Path) -> None:
    for name in ("a.txt", "b.TXT", "c.srt", "README", ".hidden", "sub/d.txt"):
        (folder / "videos" / name).parent.mkdir(exist_ok=True)
        (folder / "videos" / name).write_bytes(b"x")
    line = "5 files left out, whose endings are not those of videos: 3 .txt, 1 without an ending, 1 .srt"
    assert scan_corpus(f"{folder}/videos").left_out_line == line
    assert scan_corpus(f"{folder}/videos/**").left_out_line == line
    assert scan_corpus(f"{folder}/videos/*.mp4").left_out_line == scan_corpus(uris(folder)[0]).left_out_line == ""
    (folder / "none").mkdir()
    (folder / "none" / "x.txt").write_bytes(b"x")
    with pytest.raises(CorpusError, match=r"no videos in .*; 1 file left out, .*: 1 \.txt$"):
        list_corpus(f"{folder}/none")
    for number in range(30):
        (folder / "none" / f"x.e{number:02d}").write_bytes(b"x")
    (folder / "none" / "y.mp4").write_bytes(b"x")
    assert scan_corpus(f"{folder}/none").left_out_line.endswith(", 1 .e11, and 19 endings more")
