"""Stored turned, mirrored, with a clock that starts anew or behind another stream, a clip is answered as the plain one.

The pictures of a held-out clip are stored again without loss, in the planes of the codec. So the decoded pictures must
be equal bit by bit, and then answers and probabilities are equal, too.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media import remuxed, turned, with_display_matrix
from numpy.typing import NDArray

from sttm.config import index_recipe, load_index_config
from sttm.corpus.listing import VideoRef
from sttm.evaluation.synthetic import FPS, SEED
from sttm.indexer import DecodedVideo, Indexer, VideoReader
from sttm.models.checkpoint import Checkpoint
from sttm.query.worker import QueryWorker
from sttm.store.store import Store
from sttm.synthetic import Scene, questions, render, sample_scenes
from sttm.synthetic.encode import encode_clip

Planes = tuple[NDArray[np.uint8], ...]  # Y, U and V of 4:2:0, each uint8 [T, H, W]

MATRICES = {
    "turned by 90": (0, -1, 1, 0),
    "turned by 180": (-1, 0, 0, -1),
    "turned by 270": (0, 1, -1, 0),
    "mirrored": (-1, 0, 0, 1),
}


def planes_of(clip: bytes) -> Planes:
    """The decoded pictures as the codec stores them, with colours at half the resolution."""
    with av.open(io.BytesIO(clip)) as file:
        frames = [frame.to_ndarray(format="yuv420p") for frame in file.decode(video=0)]
    packed = np.stack(frames)
    height, width = packed.shape[1] * 2 // 3, packed.shape[2]
    luma, colours = packed[:, :height], packed[:, height:].reshape(len(packed), 2, height // 2, width // 2)
    return luma, colours[:, 0], colours[:, 1]


def stored(videos: Sequence[Planes], container: str) -> bytes:
    """The pictures without loss; of several videos each is a stream, and the last one is the default."""
    output = io.BytesIO()
    options = {"default_mode": "passthrough"} if container == "matroska" else {}
    with av.open(output, "w", format=container, container_options=options) as file:
        streams = [file.add_stream("libx264", rate=FPS) for _ in videos]
        for stream, (luma, _, _) in zip(streams, videos, strict=True):
            stream.height, stream.width = luma.shape[1:]
            stream.pix_fmt, stream.options = "yuv420p", {"qp": "0", "bf": "0", "preset": "ultrafast", "threads": "1"}
            stream.disposition = av.stream.Disposition.default if stream is streams[-1] else 0
        for number in range(len(videos[0][0])):
            for stream, video in zip(streams, videos, strict=True):
                packed = np.concatenate([plane[number].reshape(-1) for plane in video])
                frame = av.VideoFrame.from_ndarray(packed.reshape(-1, video[0].shape[2]), format="yuv420p")
                file.mux(stream.encode(frame))
        for stream in streams:
            file.mux(stream.encode())
    return output.getvalue()


def odd_files(clip: bytes) -> dict[str, bytes]:
    """The clip as archives may hold it."""
    planes = planes_of(clip)
    files = {"plain": stored([planes], "mp4")}
    for name, (a, b, c, d) in MATRICES.items():
        lying = tuple(turned(plane, a, c, b, d) for plane in planes)  # the inverse of a turn is its transpose
        files[f"{name}, MP4"] = with_display_matrix(stored([lying], "mp4"), a, b, c, d)
        files[f"{name}, MKV"] = remuxed(files[f"{name}, MP4"], "matroska")
    half = len(planes[0]) // 2
    parts = [tuple(plane[part] for plane in planes) for part in (slice(0, half), slice(half, None))]
    files["clock starts anew, TS"] = b"".join(stored([part], "mpegts") for part in parts)
    black = tuple(np.full_like(plane, 16 if plane is planes[0] else 128) for plane in planes)
    files["second stream, MKV"] = stored([black, planes], "matroska")
    return files


class Asking:
    """Indexes files with the shipped settings of the built-in model and asks the questions of a scene."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, str(folder / "store")
        config = load_index_config("tiny", ["fidelity.probes=[]"])
        checkpoint = Checkpoint.open(config.model)
        self.store = Store.open(self.url, create=True)
        self.reader = VideoReader(config)
        self.indexer = Indexer(config, index_recipe(config, checkpoint), self.url, "run", device="cpu")
        self.worker = QueryWorker(self.store, checkpoint, ["cpu"])

    def decode(self, name: str, data: bytes) -> DecodedVideo:
        path = self.folder / name
        path.write_bytes(data)
        return self.reader.read(VideoRef.from_uri(str(path)))

    def answers(self, scene: Scene, decoded: DecodedVideo) -> list[Any]:
        """For each question the answer and the probabilities of all options."""
        video = self.worker.load(self.indexer.index(decoded).identity)
        asked = questions(scene)
        choices = self.worker.choose(video, [[q.text] for q in asked], [q.options for q in asked])
        return [(q.options[choice.index], choice.probabilities) for q, choice in zip(asked, choices, strict=True)]


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Asking:
    return Asking(tmp_path_factory.mktemp("asking"))


def plain_clip(scene: Scene) -> bytes:
    return encode_clip(render([scene])[0].numpy(), FPS)


def decode_odd(asking: Asking, clip: bytes, plain: DecodedVideo) -> dict[str, DecodedVideo]:
    """The clip as archives may hold it, decoded. Each must have the pictures and times of the plain clip."""
    decoded = {name: asking.decode(name, data) for name, data in odd_files(clip).items()}
    for name, video in decoded.items():
        assert np.array_equal(video.inputs.pixels, plain.inputs.pixels), name
        assert video.sampling.seconds == plain.sampling.seconds, name
    return decoded


@pytest.mark.parametrize(("seed", "name"), [(SEED, "turned by 90, MKV"), (SEED + 1, "clock starts anew, TS")])
def test_an_odd_file_is_decoded_and_answered_as_the_plain_clip(asking: Asking, seed: int, name: str) -> None:
    (scene,) = sample_scenes(seed, 1, frames=8, size=112)
    clip = plain_clip(scene)
    plain = asking.decode("clip", clip)
    odd = decode_odd(asking, clip, plain)
    assert asking.answers(scene, odd[name]) == asking.answers(scene, plain)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(4))
def test_all_odd_files_of_a_held_out_clip_are_answered_as_the_plain_one(asking: Asking, number: int) -> None:
    scene = sample_scenes(SEED, number + 1)[number]
    clip = plain_clip(scene)
    plain = asking.decode("clip", clip)
    expected = asking.answers(scene, plain)
    for name, decoded in decode_odd(asking, clip, plain).items():
        assert asking.answers(scene, decoded) == expected, name
    right = [answer == q.answer for q, (answer, _) in zip(questions(scene), expected, strict=True)]
    assert np.mean(right) > 0.7  # so the answers are about the video
