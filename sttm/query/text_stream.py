"""The text of one answer as its tokens come: never half a character, never a piece of a stop text."""

from collections.abc import Sequence
from typing import Any


class TextStream:
    """Turns token ids into text piece by piece; all pieces together are what decoding all tokens at once gives.

    Args:
        tokenizer: of the checkpoint.
        stop: texts that end the answer; the first one found ends it and is not part of it.

    Attributes:
        text: all that was given out.
        is_stopped: a stop text was found; further tokens are ignored.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(filter(None, stop))
        # Tokens are decoded in a window that begins a piece early: a token's text may depend on the one before it.
        self._ids: list[int] = []
        self._begin = self._decoded = 0
        self._held = ""
        self.text, self.is_stopped = "", False

    def push(self, token: int) -> str:
        """Take one token; the text that is certain now, often empty."""
        if self.is_stopped:
            return ""
        self._ids.append(token)
        piece = self._undecoded()
        if piece.endswith("\ufffd"):  # the bytes of a character that is not complete yet
            return ""
        self._begin, self._decoded = self._decoded, len(self._ids)
        return self._give(piece, is_last=False)

    def end(self) -> str:
        """No more tokens come: the text that was held back."""
        return "" if self.is_stopped else self._give(self._undecoded(), is_last=True)

    def _undecoded(self) -> str:
        before = self._decode(self._ids[self._begin : self._decoded])
        return self._decode(self._ids[self._begin :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _give(self, piece: str, is_last: bool) -> str:
        text = self._held + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.is_stopped, certain = True, min(found)
        else:
            certain = len(text) - (0 if is_last else _begun(text, self._stop))
        self._held = "" if found else text[certain:]
        self.text += text[:certain]
        return text[:certain]


def _begun(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which some stop text begins."""
    lengths = (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
    return max(lengths, default=0)
