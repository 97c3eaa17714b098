"""What was found out while an artifact was made, as its manifest records it.

In the manifest's JSON, `sampling`, `provenance`, `certificate`, `arithmetic` and `converted_from` lie in an object
`details`. Older and newer programs may have written fewer, further or other entries there: an entry that is missing or
not of its type reads as its default, an unknown one is ignored.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar, get_type_hints

from sttm.certificate import ArithmeticCertificate, Certificate
from sttm.store.json_fields import build, known_fields

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How a video's frames were sampled and decoded.

    Attributes:
        seconds: presentation time of each sampled frame.
        duration_s: length of the whole video; 0 if it is not recorded.
        decoder: library and version that decoded it, such as `decord 0.6.0`.
        warnings: what was odd about the file, a sentence each.
        frames_asked: how many different frames `video.fps` asked for; 0 if it is not recorded.
        frames_left_out: how many of these `video.max_frames` left out; the video is thinned if there are any.
    """

    seconds: tuple[float, ...] = ()
    duration_s: float = 0.0
    decoder: str = ""
    warnings: tuple[str, ...] = ()
    frames_asked: int = 0
    frames_left_out: int = 0


@dataclass(frozen=True)
class Provenance:
    """Model, libraries and device that made an artifact. They are not part of its identity.

    Attributes:
        model: folder, repository id or built-in name of the model; empty if it is not recorded.
        commit: commit of a hub repository; None for a folder.
        torch, transformers: versions of these libraries.
        device: name of the GPU, or `cpu`.
        chunk_tokens: the setting `prefill.chunk_tokens`.
    """

    model: str = ""
    commit: str | None = None
    torch: str = ""
    transformers: str = ""
    device: str = ""
    chunk_tokens: int | None = None


@dataclass(frozen=True)
class Facts:
    """What was found out while an artifact was made.

    Attributes:
        tokens_before, tokens_after: visual tokens entering and leaving the merge.
        thresholds: similarity thresholds really used, by name.
        timings_s: seconds each step took, by name.
        run_id: name of the run that made the artifact.
        attempts: number of tries it took.
        sampling: how the frames were sampled and decoded.
        provenance: what made the artifact.
        certificate: how faithful the stored cache is to the live one; None if no probe questions were asked.
        arithmetic: how faithful the run's FP8 arithmetic is to bfloat16; None if it was not compared.
        converted_from: identity of the exact artifact that `requantise` derived this one from; empty for others.
    """

    tokens_before: int
    tokens_after: int
    thresholds: Mapping[str, float] = field(default_factory=dict)
    timings_s: Mapping[str, float] = field(default_factory=dict)
    run_id: str = ""
    attempts: int = 1
    sampling: Sampling = Sampling()
    provenance: Provenance = Provenance()
    certificate: Certificate | None = None
    arithmetic: ArithmeticCertificate | None = None
    converted_from: str = ""

    def record(self) -> dict[str, Any]:
        """The facts as the JSON object of a manifest, without the sections that hold nothing but defaults."""
        record = asdict(self)
        details = {name: record.pop(name) for name in _DETAILS}
        return {**record, "details": {name: value for name, value in details.items() if value != _EMPTY[name]}}


_DETAILS = ("sampling", "provenance", "certificate", "arithmetic", "converted_from")
_EMPTY = asdict(Facts(0, 0))


def read_facts(record: Any) -> Facts:
    """The facts of a manifest's JSON object.

    Raises:
        TypeError: a field outside `details` is missing, unknown or not of its type, or `details` is no object.
    """
    if not isinstance(record, dict) or record.keys() & {*_DETAILS}:
        raise TypeError("facts is not an object with its fields")
    record, details = dict(record), record.get("details", {})
    record.pop("details", None)
    if not isinstance(details, dict):
        raise TypeError(f"details is {ascii(details)[:80]}")
    converted_from = details.get("converted_from")
    return replace(
        build(Facts, record),
        sampling=Sampling(**known_fields(Sampling, details.get("sampling"))),
        provenance=Provenance(**known_fields(Provenance, details.get("provenance"))),
        certificate=_complete(Certificate, details.get("certificate")),
        arithmetic=_complete(ArithmeticCertificate, details.get("arithmetic")),
        converted_from=converted_from if isinstance(converted_from, str) else "",
    )


def _complete(kind: type[T], body: Any) -> T | None:
    """A dataclass of a JSON object; None if a field is missing or not of its type."""
    known = known_fields(kind, body)
    return kind(**known) if len(known) == len(get_type_hints(kind)) else None
