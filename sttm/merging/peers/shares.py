"""How a number of tokens is divided among frames."""


def share_evenly(total: int, parts: int) -> list[int]:
    """Divide `total` into `parts` numbers that differ by at most one, with the larger ones spread out.

    Example: 7 in 3 parts -> [2, 2, 3].
    """
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]
