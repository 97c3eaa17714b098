"""Read single bits and Exp-Golomb numbers from the headers of coded pictures."""


class BitReader:
    """Reads bits from the most significant one on. Behind the end of the data all bits are 0, so nothing is raised.

    Args:
        data: the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    @property
    def is_exhausted(self) -> bool:
        """Whether more bits were read than there are."""
        return self._left < 0

    def bits(self, count: int) -> int:
        """The next `count` bits as a number."""
        self._left -= count
        shifted = self._value >> self._left if self._left >= 0 else self._value << min(-self._left, count)
        return shifted & ((1 << count) - 1)

    def unsigned(self) -> int:
        """The next unsigned Exp-Golomb number, ue(v) in ISO/IEC 14496-10; 0 if its code is longer than 32 bits."""
        zeros = 0
        while zeros < 32 and not self.bits(1):
            zeros += 1
        return (1 << zeros) - 1 + self.bits(zeros) if zeros < 32 else 0

    def signed(self) -> int:
        """The next signed Exp-Golomb number, se(v) in ISO/IEC 14496-10."""
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)
