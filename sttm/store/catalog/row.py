"""One row of the catalog."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sttm.store.artifact import Manifest, utc_now
from sttm.store.key import recipe_digest, source_key


@dataclass(frozen=True)
class CatalogRow:
    """What the catalog knows about one video under one recipe.

    Attributes:
        video_id: id of the video, unique in the corpus.
        uri: absolute URI of the video file.
        name: file name for people.
        status: `ok`, `error`, or `removed`.
        recipe_digest: sha256 of the recipe.
        source_key: digest of file and recipe, by which an indexed file is skipped without being read.
        identity: identity of the artifact; empty in an error row.
        content_digest: blake3 of the video file; empty in an error row and in rows of older programs.
        source_bytes: size of the video file; 0 if unknown.
        duration_s: length of the video; 0 if unknown.
        frames: how many frames were taken from the video; 0 if unknown.
        frames_asked: how many different frames `video.fps` asked for; 0 if unknown.
        frames_left_out: how many of these `video.max_frames` left out.
        kv_bytes, tokens_bytes: sizes of the artifact's files.
        tokens_before, tokens_after: visual tokens entering and leaving the merge.
        retained_ratio: `tokens_after` / `tokens_before`.
        thresholds: similarity thresholds really used, by name.
        timings_s: seconds each step took, by name.
        kl_mean, top1_agreement: from the fidelity certificate; None without one.
        error_code, error_message: why indexing failed; empty unless this is an error row.
        run_id: name of the run that wrote the row.
        attempts: number of tries it took.
        created_at: UTC, ISO 8601, by the clock of the writer; for people, nothing is ordered by it.
    """

    video_id: str
    uri: str
    name: str
    status: Literal["ok", "error", "removed"]
    recipe_digest: str
    source_key: str
    identity: str = ""
    content_digest: str = ""
    source_bytes: int = 0
    duration_s: float = 0.0
    frames: int = 0
    frames_asked: int = 0
    frames_left_out: int = 0
    kv_bytes: int = 0
    tokens_bytes: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    retained_ratio: float = 0.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    timings_s: Mapping[str, float] = field(default_factory=dict)
    kl_mean: float | None = None
    top1_agreement: float | None = None
    error_code: str = ""
    error_message: str = ""
    run_id: str = ""
    attempts: int = 1
    created_at: str = field(default_factory=utc_now)

    @property
    def is_thinned(self) -> bool:
        """Whether `video.max_frames` left out frames that `video.fps` asked for. A slow video, of which every frame
        was taken, is not thinned, and frames that were lost through damage do not make a video thinned.
        """
        return self.frames_left_out > 0

    @property
    def seconds_per_frame(self) -> float | None:
        """Seconds of video for each frame that was taken; None if the numbers are unknown."""
        return self.duration_s / self.frames if self.frames and self.duration_s else None

    @classmethod
    def of(cls, manifest: Manifest) -> "CatalogRow":
        """The row of a committed artifact."""
        source, facts = manifest.source, manifest.facts
        certificate = facts.certificate
        return cls(
            video_id=source.video_id,
            uri=source.uri,
            name=source.name,
            status="ok",
            recipe_digest=recipe_digest(manifest.recipe),
            source_key=source_key(source.uri, source.size_bytes, source.version, manifest.recipe),
            identity=manifest.identity,
            content_digest=manifest.content_digest,
            source_bytes=source.size_bytes,
            duration_s=facts.sampling.duration_s,
            frames=len(facts.sampling.seconds),
            frames_asked=facts.sampling.frames_asked,
            frames_left_out=facts.sampling.frames_left_out,
            kv_bytes=manifest.kv.size_bytes,
            tokens_bytes=manifest.tokens.size_bytes,
            tokens_before=facts.tokens_before,
            tokens_after=facts.tokens_after,
            retained_ratio=facts.tokens_after / max(1, facts.tokens_before),
            thresholds=facts.thresholds,
            timings_s=facts.timings_s,
            kl_mean=certificate.kl_mean if certificate else None,
            top1_agreement=certificate.top1_agreement if certificate else None,
            run_id=facts.run_id,
            attempts=facts.attempts,
            created_at=manifest.created_at,
        )
