"""Splits rows into batches of similar length, because all rows of a batch are padded to its longest."""

from collections.abc import Sequence

_MOST_TOKENS = 16_384  # tokens of a batch, padding included, which bounds its memory
_FREE_PADDING = 2048  # tokens of padding that cost less than the steps of a further batch


def batches(lengths: Sequence[int], max_rows: int) -> list[list[int]]:
    """The numbers of the rows of each batch, shortest rows first.

    Beyond 2,048 tokens of padding a batch holds no more padding than real tokens. So a short row is not padded to a
    much longer one and does not wait for it: `batches([9, 5000, 8], 64) == [[2, 0], [1]]`.

    Args:
        lengths: number of tokens of each row.
        max_rows: most rows of a batch.
    """
    found: list[list[int]] = []
    real = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length, rows = lengths[row], len(found[-1]) + 1 if found else 0
        padding = length * rows - (real + length)
        fits = 0 < rows <= max_rows and length * rows <= _MOST_TOKENS and padding <= max(_FREE_PADDING, real + length)
        if not fits:
            found.append([])
            real = 0
        found[-1].append(row)
        real += length
    return found
