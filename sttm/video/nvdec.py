"""Decode a video on an NVIDIA GPU by its NVDEC engines, through PyAV. The frames never leave the GPU.

The packets, the times and the pixels are those of a CPU: H.264, HEVC and VP9 define every byte of a decoded plane, and
`sttm.video.colour` and the model's resizing compute in integers. As a check, the first frame of each video is decoded
by the CPU, too, and must be equal. What a GPU cannot decode, or decodes with anything odd, is left to a CPU.

NVDEC does not report damage inside a picture, as long as the headers can be read.

Needed: the driver's libnvcuvid, which a container gets only with NVIDIA_DRIVER_CAPABILITIES=compute,utility,video.
"""

import ctypes
import io
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sttm.errors import VideoError
from sttm.video.colour import colour_matrix, to_rgb
from sttm.video.frames import FrameKeeper
from sttm.video.gpu_frame_buffer import GpuFrameBuffer
from sttm.video.index import VideoIndex
from sttm.video.orientation import Orientation
from sttm.video.segments import DoubtError, PacketPass, checked, decode
from sttm.video.selection import select

_CODECS = ("h264", "hevc", "vp9")  # AV1 is exact, too, but the decoders of data-centre GPUs such as the H200 lack it
_NAMES = {"libdav1d": "AV1"}  # of codecs whose decoder in FFmpeg has another name
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
# FFmpeg shares PyTorch's CUDA context, so that PyTorch can read the frames.
_SAME_CONTEXT = {"primary_ctx": "0", "current_ctx": "1"}


class NotOnGpuError(Exception):
    """A GPU cannot decode a video, though the video may be sound. All videos with the same cause get the same text."""


def cannot_decode_because() -> str:
    """Why this process cannot decode on its GPU, in a few words with the cure; empty if it can."""
    from av.codec.hwaccel import hwdevices_available

    if not torch.cuda.is_available():
        return "there is no GPU"
    if "cuda" not in hwdevices_available():
        return "this build of PyAV has no CUDA; install its wheel from PyPI"
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return "libnvcuvid.so.1 is missing; start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
    return ""


def require_suitable(index: VideoIndex) -> None:
    """Check what the container says about a video, before any packet is decoded.

    Raises:
        NotOnGpuError: only a CPU can decode it.
    """
    if index.codec not in _CODECS:
        raise NotOnGpuError(f"the codec {_NAMES.get(index.codec, index.codec)}")
    if index.width % 2 or index.height % 2:
        raise NotOnGpuError("an odd picture size")
    if index.is_counted or len(index.parts) > 1:
        raise NotOnGpuError("an irregular container")


def decode_on_gpu(
    source: io.BytesIO,
    index: VideoIndex,
    wanted: NDArray[np.int64],
    max_pixels: int,
    where: str,
    buffer: GpuFrameBuffer,
) -> tuple[Tensor, NDArray[np.float64], tuple[str, ...]]:
    """Decode the wanted frames on the current GPU, on its default stream, and wait until they are there.

    Args:
        source: the bytes of the file.
        index: the index of the video.
        wanted: int64 [T], time stamps of the frames, increasing.
        max_pixels: the most pixels of a decoded frame.
        where: name of the video, for error messages.
        buffer: where the frames are kept, and perhaps resized.

    Returns:
        Pixels uint8 [T, H, W, 3] on the GPU, times float64 [T] in seconds, and warnings.

    Raises:
        NotOnGpuError: only a CPU can decode the video; the GPU is not at fault.
        VideoError: `too_many_pixels` or `unusable_frames`.
    """
    import av

    require_suitable(index)
    keeper = FrameKeeper(index, wanted, max_pixels, where, buffer, _picture())
    try:
        with closing(PacketPass(source, index, 0, _hardware())) as packets:
            for group in select(index, 0, wanted):
                for segment in group.segments or (group.whole,):
                    for frame in checked(packets.frames(segment), segment):
                        keeper.offer(frame)
    except DoubtError as error:
        raise NotOnGpuError("a missing, damaged or disordered frame") from error
    except (NotImplementedError, av.error.FFmpegError) as error:
        raise NotOnGpuError(f"the decoder's refusal ({type(error).__name__})") from error
    pixels, seconds, warnings = keeper.finish()
    torch.cuda.current_stream(pixels.device).synchronize()
    _require_equal_first(pixels[0], source, index, wanted, max_pixels, where, buffer)
    return pixels, seconds, warnings


def _require_equal_first(
    first: Tensor,
    source: io.BytesIO,
    index: VideoIndex,
    wanted: NDArray[np.int64],
    max_pixels: int,
    where: str,
    buffer: GpuFrameBuffer,
) -> None:
    """Check that a CPU decodes the first wanted frame to the same bytes.

    Raises:
        NotOnGpuError: the bytes differ.
    """
    try:
        pixels, _, _ = decode(source, index, wanted[:1], max_pixels, where, buffer.on_cpu(1))
    except VideoError as error:
        raise NotOnGpuError("a damaged first frame") from error
    if not np.array_equal(pixels[0], first.cpu().numpy()):
        raise NotOnGpuError("a first frame that differs from the CPU's")


def _hardware() -> Any:
    from av.codec.hwaccel import HWAccel

    torch.cuda.mem_get_info()  # makes the CUDA context current for this thread
    return HWAccel("cuda", allow_software_fallback=False, is_hw_owned=True, options=dict(_SAME_CONTEXT))


def _picture() -> Callable[[Any, tuple[int, int], Orientation], Tensor]:
    """A function that makes the upright picture uint8 [H, W, 3] of a decoded frame, of which all must have one size."""
    sizes: set[tuple[int, int]] = set()

    def picture(frame: Any, _: tuple[int, int], orientation: Orientation) -> Tensor:
        sizes.add((frame.width, frame.height))
        if len(sizes) > 1:
            raise NotOnGpuError("a picture size that changes")
        if frame.interlaced_frame:
            raise NotOnGpuError("interlaced frames")
        if frame.sw_format is None or frame.sw_format.name != "nv12":
            raise NotOnGpuError("another pixel format than 8-bit 4:2:0")
        matrix = colour_matrix(int(frame.colorspace), is_full_range=int(frame.color_range) == _FULL_RANGE)
        if matrix is None:
            raise NotOnGpuError("an unusual colour space")
        luma, chroma = (torch.utils.dlpack.from_dlpack(plane.__dlpack__()) for plane in frame.planes)
        return orientation.upright_tensor(to_rgb(luma, chroma, matrix).permute(1, 2, 0))

    return picture
