"""Count the frames of an AVI file from its chunks, of which an empty one means that the last frame is shown again."""

_PICTURES = (b"dc", b"db")  # compressed and uncompressed


def count_frame_chunks(data: memoryview, stream: int) -> int:
    """How many whole frame chunks of a stream the file holds, empty ones counted.

    Args:
        data: the bytes of the file.
        stream: number of the stream.
    """
    wanted = {b"%02d%s" % (stream, kind) for kind in _PICTURES}
    count, at, end = 0, 0, len(data)
    while at + 8 <= end:
        kind, size = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"RIFF", b"LIST"):
            # The chunks of these lists are walked one after the other; all other lists are stepped over whole.
            inside = bytes(data[at + 8 : at + 12]) in (b"AVI ", b"AVIX", b"movi", b"rec ")
            at += 12 if inside else 8 + size + size % 2
            continue
        at += 8 + size + size % 2
        count += kind in wanted and at <= end + 1
    return count
