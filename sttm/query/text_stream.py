"""The text of one answer while its tokens are generated.

No piece of text ends inside a character, and no piece holds a part of a stop text.
"""

from collections.abc import Sequence
from typing import Any


class TextStream:
    """Turns token ids into text piece by piece. All pieces together equal the text of all tokens decoded at once.

    Args:
        tokenizer: the checkpoint's tokenizer.
        stop: texts that end the answer. The first one found ends it and is not part of it.

    Attributes:
        text: all pieces so far.
        is_stopped: a stop text was found; further tokens are ignored.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(filter(None, stop))
        # A token's text may depend on the token before it, so the decoded window begins one piece early.
        self._ids: list[int] = []
        self._begin = self._decoded = 0
        self._held = ""
        self.text, self.is_stopped = "", False

    def push(self, token: int) -> str:
        """Take one token. Returns the text that no later token can change, which is often empty."""
        if self.is_stopped:
            return ""
        self._ids.append(token)
        piece = self._undecoded()
        if piece.endswith("\ufffd"):  # The bytes of the character are not complete yet.
            return ""
        self._begin, self._decoded = self._decoded, len(self._ids)
        return self._append(piece, is_last=False)

    def end(self) -> str:
        """Say that no more tokens come. Returns the text that was held back."""
        return "" if self.is_stopped else self._append(self._undecoded(), is_last=True)

    def _undecoded(self) -> str:
        before = self._decode(self._ids[self._begin : self._decoded])
        return self._decode(self._ids[self._begin :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _append(self, piece: str, is_last: bool) -> str:
        text = self._held + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.is_stopped, certain = True, min(found)
        else:
            certain = len(text) - (0 if is_last else _begun_length(text, self._stop))
        self._held = "" if found else text[certain:]
        self.text += text[:certain]
        return text[:certain]


def _begun_length(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop text."""
    lengths = (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
    return max(lengths, default=0)
