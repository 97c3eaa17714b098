"""A picture of a stored video's sampled frames, decoded from the source in a process of its own.

    python -m jobs.serving.frame_strip < request.json > strip.jpg

Artifacts hold no pixels, so the source is decoded again. If the source crashes or stalls the decoder, only the
decoding process ends, not the service.
"""

import asyncio
import io
import json
import sys
from typing import Any

from sttm.errors import VideoError
from sttm.store.artifact import Manifest

_TIMEOUT_S = 60.0
_HEIGHT, _MAX_FRAMES = 168, 256


async def frame_strip(manifest: Manifest) -> bytes:
    """A JPEG of the sampled frames below each other, each 168 pixels high; at most 256 of them.

    Raises:
        VideoError: the source cannot be decoded in 60 s, or it is not the file that was indexed.
    """
    video = {name: value for name, value in manifest.recipe["video"].items() if name != "decoders"}
    request = {"uri": manifest.source.uri, "digest": manifest.content_digest, "video": video}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jobs.serving.frame_strip"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, _ = await process.communicate(json.dumps(request).encode())
    except TimeoutError:
        raise VideoError("no_frames", f"{manifest.source.name}: decoding took over {_TIMEOUT_S} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0 or not out.startswith(b"\xff\xd8"):
        raise VideoError("no_frames", f"{manifest.source.name}: the source cannot be decoded, or is another file now")
    return out


def main() -> None:
    """Read a request from standard input and write the JPEG to standard output."""
    sys.stdout.buffer.write(_strip(json.load(sys.stdin)))


def _strip(request: dict[str, Any]) -> bytes:
    import numpy as np
    from PIL import Image

    from sttm.video.decode import VideoConfig, read_video

    frames = read_video(request["uri"], VideoConfig(**request["video"]))
    if frames.content_digest != request["digest"]:
        raise VideoError("changed", "the source has changed since it was indexed")
    pixels = frames.pixels[:_MAX_FRAMES]
    size = (max(1, round(pixels.shape[2] * _HEIGHT / pixels.shape[1])), _HEIGHT)
    small = [np.asarray(Image.fromarray(frame).resize(size)) for frame in pixels]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(small)).save(out, "JPEG", quality=80)
    return out.getvalue()


if __name__ == "__main__":
    main()
