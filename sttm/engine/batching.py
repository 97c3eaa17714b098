"""Which rows are computed together. Rows are padded to the longest of their batch, so a batch's are of like length."""

from collections.abc import Sequence

_MOST_TOKENS = 16_384  # of a batch, padding included: what its rows take in memory
_FREE_PADDING = 2048  # tokens; feeding so few more costs less than the steps of one more batch


def batches(lengths: Sequence[int], max_rows: int) -> list[list[int]]:
    """Which rows, by number, go together; the shortest first.

    A batch holds no more padding than tokens, but for a little, so that a long row makes no short one wait or grow:
    `batches([9, 5000, 8], 64) == [[2, 0], [1]]`.

    Args:
        lengths: tokens of each row.
        max_rows: of a batch.
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
