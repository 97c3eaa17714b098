"""Synthetic frames as a real video file, so that the demo and the benchmark go through a decoder like any video."""

import io

import numpy as np


def encode_clip(frames: np.ndarray, fps: int = 2) -> bytes:
    """An H.264 MP4 of frames uint8 [T, H, W, 3]; the same bytes for the same frames.

    Args:
        frames: height and width even, as H.264 with half-resolution colour needs.
        fps: frames shown per second.
    """
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()
