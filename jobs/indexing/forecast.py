"""What indexing some videos will cost, forecast from what indexing other videos into the same store has cost.

Before a video is read only the size of its file is known, unless the store holds it under another recipe. So:

    size ──► seconds of video ──► frames, by the sampling rule ──► visual tokens ──► GPU seconds, bytes to store
                             └──► CPU seconds of decoding

Each arrow is a rate measured over the videos in the store. Only the catalog and one manifest per recipe are read.
"""

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from sttm.corpus.listing import VideoRef
from sttm.indexer import DECODE_CPU, GPU_STAGES
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe, differences, recipe_digest
from sttm.store.store import Store
from sttm.video.frames import count_at_rate, sample_times


@dataclass(frozen=True)
class Rate:
    """What indexing with one recipe has cost and yielded so far.

    Attributes:
        videos: how many videos the rate was measured on.
        device: the device that the videos were prefilled on.
        differs: how the measured recipe differs from the one asked for; empty if they are the same.
        source_bytes_per_s: bytes of the file per second of video.
        tokens_per_frame: visual tokens before the merge per sampled frame.
        retained_ratio: tokens after the merge per token before it.
        gpu_s_per_token: seconds of one actor per token before the merge.
        stored_bytes_per_token: bytes of both stored files per token before the merge.
        decode_cpu_s_per_s: CPU seconds of decoding per second of video; None if they were never recorded.
    """

    videos: int
    device: str
    differs: tuple[str, ...]
    source_bytes_per_s: float
    tokens_per_frame: float
    retained_ratio: float
    gpu_s_per_token: float
    stored_bytes_per_token: float
    decode_cpu_s_per_s: float | None


@dataclass(frozen=True)
class Forecast:
    """The expected cost of some videos.

    Attributes:
        video_hours: length of all videos, in hours.
        video_hours_known: the part of `video_hours` that is known, and not guessed from the size of a file.
        tokens_before: visual tokens entering the merge.
        tokens_after: visual tokens leaving the merge.
        gigabytes: size of the artifacts to be written, in 10^9 bytes.
        gpu_hours: hours of all GPUs that the actors hold, added up; hours of actors where there are no GPUs.
        core_hours: hours of all CPU cores that decode, added up; None if the store has no such measurement.
    """

    video_hours: float
    video_hours_known: float
    tokens_before: int
    tokens_after: int
    gigabytes: float
    gpu_hours: float
    core_hours: float | None

    @property
    def cost(self) -> str:
        """What 1,000 hours of such video cost, in one line."""
        per = 1000 / self.video_hours if self.video_hours else 0.0
        cores = "an unknown number of" if self.core_hours is None else f"{self.core_hours * per:.3g}"
        return f"1,000 hours of such video cost {self.gpu_hours * per:.3g} GPU hours and {cores} core hours"


def measured_rate(store: Store, recipe: Recipe) -> Rate | None:
    """The rate of this recipe, or of the nearest one with the same model and budget; None if the store has neither."""
    by_recipe: dict[str, dict[str, CatalogRow]] = defaultdict(dict)
    for row in store.catalog.rows():
        if row.status == "ok" and row.duration_s and row.source_bytes and row.tokens_before and row.timings_s:
            by_recipe[row.recipe_digest][row.identity] = row
    own = recipe_digest(recipe)
    found = []
    for digest in [own] if own in by_recipe else by_recipe:
        manifest = store.manifest(next(iter(by_recipe[digest])))
        if _kind(manifest.recipe) == _kind(recipe):
            found.append((manifest, list(by_recipe[digest].values())))
    if not found:
        return None
    manifest, rows = min(found, key=lambda pair: (len(differences(pair[0].recipe, recipe)), -len(pair[1])))
    differs = tuple(f"{d.path} is {d.left}, asked for {d.right}" for d in differences(manifest.recipe, recipe))
    return _rate(rows, manifest.recipe, manifest.facts.provenance.device or "cpu", differs)


def forecast(refs: list[VideoRef], store: Store, recipe: Recipe, rate: Rate, gpus_per_model: int) -> Forecast:
    """What indexing these videos will cost at a measured rate, with the frames that this recipe samples."""
    known = known_durations(refs, store)
    seconds = [
        duration or (ref.size_bytes or 0) / rate.source_bytes_per_s
        for ref, duration in zip(refs, known, strict=True)
    ]  # fmt: skip
    tokens = sum(_frames(s, recipe) for s in seconds if s) * rate.tokens_per_frame
    return Forecast(
        video_hours=sum(seconds) / 3600,
        video_hours_known=sum(filter(None, known)) / 3600,
        tokens_before=round(tokens),
        tokens_after=round(tokens * rate.retained_ratio),
        gigabytes=tokens * rate.stored_bytes_per_token / 1e9,
        gpu_hours=tokens * rate.gpu_s_per_token * gpus_per_model / 3600,
        core_hours=None if rate.decode_cpu_s_per_s is None else sum(seconds) * rate.decode_cpu_s_per_s / 3600,
    )


def known_durations(refs: list[VideoRef], store: Store | None) -> list[float | None]:
    """The length of each video in seconds, from rows of any recipe of the very same file; None where there is none."""
    history = store.catalog.history() if store else []
    durations = {(row.uri, row.source_bytes): row.duration_s for row in history if row.duration_s}
    return [durations.get((ref.uri, ref.size_bytes or 0)) for ref in refs]


def would_be_thinned(duration_s: float, recipe: Recipe) -> bool:
    """Whether `video.fps` asks for more samples of a video of this length than `video.max_frames` allows.

    A slow video, which shows fewer different frames than samples, may turn out not to be thinned.
    """
    return count_at_rate(_last_frame_s(duration_s), recipe["video"]["fps"]) > recipe["video"]["max_frames"]


def _rate(rows: list[CatalogRow], recipe: Recipe, device: str, differs: tuple[str, ...]) -> Rate:
    tokens = sum(row.tokens_before for row in rows)
    timed = [row for row in rows if DECODE_CPU in row.timings_s]
    decode_cpu_s = sum(row.timings_s[DECODE_CPU] for row in timed)
    gpu = [sum(row.timings_s.get(stage, 0.0) for stage in GPU_STAGES) / row.tokens_before for row in rows]
    return Rate(
        videos=len(rows),
        device=device,
        differs=differs,
        source_bytes_per_s=sum(row.source_bytes for row in rows) / sum(row.duration_s for row in rows),
        tokens_per_frame=tokens / sum(_frames(row.duration_s, recipe) for row in rows),
        retained_ratio=sum(row.tokens_after for row in rows) / tokens,
        gpu_s_per_token=median(gpu),  # not the mean: an actor's first video also pays for warming up
        stored_bytes_per_token=sum(row.kv_bytes + row.tokens_bytes for row in rows) / tokens,
        decode_cpu_s_per_s=decode_cpu_s / sum(row.duration_s for row in timed) if timed else None,
    )


def _frames(duration_s: float, recipe: Recipe) -> int:
    """How many frames the recipe samples from a video."""
    video = recipe["video"]
    return len(sample_times(0.0, _last_frame_s(duration_s), video["fps"], video["max_frames"], video["min_frames"]))


def _last_frame_s(duration_s: float) -> float:
    """About when the last frame of a video starts: a little before its end."""
    return max(0.0, duration_s - 1e-3)


def _kind(recipe: Recipe) -> tuple[object, ...]:
    """What two recipes must share for one to forecast the other: model, frame size, and how much the merge keeps."""
    shared = ("method", "budget", "tokens", "spatial_threshold", "temporal_threshold")
    return recipe["model"], recipe.get("preprocess"), *(recipe["merge"].get(name) for name in shared)
