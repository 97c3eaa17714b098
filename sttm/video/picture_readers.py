"""Which reader of packet headers belongs to which codec."""

from sttm.video.av1 import Av1Pictures
from sttm.video.coded_picture import PictureReader, UnreadPictures
from sttm.video.h264 import H264Pictures
from sttm.video.hevc import HevcPictures
from sttm.video.mpeg2 import Mpeg2Pictures


def picture_reader(codec: str, extradata: bytes, keys_are_entries: bool) -> PictureReader:
    """The reader for a stream. The pictures of codecs without a reader are all needed.

    Args:
        codec: FFmpeg's name of the codec or of its decoder.
        extradata: the header of the stream as FFmpeg gives it; may be empty.
        keys_are_entries: whether decoding can start at the packets that the container marks as keys, if the codec's
            own headers do not name the entries.
    """
    if codec == "h264":
        return H264Pictures(extradata)
    if codec == "hevc":
        return HevcPictures(extradata)
    if codec in ("av1", "libdav1d") and keys_are_entries:
        return Av1Pictures(extradata)
    if codec in ("mpeg1video", "mpeg2video"):
        return Mpeg2Pictures()
    return UnreadPictures(keys_are_entries)
