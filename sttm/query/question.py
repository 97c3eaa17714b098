"""What may be asked, by whichever way a question comes in."""

from collections.abc import Sequence

MAX_CHARS, MAX_OPTIONS = 32_000, 64


def fault(question: str, options: Sequence[str] = ()) -> str:
    """Why a question, with what may be chosen from, cannot be asked; empty if it can."""
    if not question.strip():
        return "the question is empty"
    if len(question) > MAX_CHARS:
        return f"the question has {len(question)} characters, over {MAX_CHARS}"
    if options and not 2 <= len(options) <= MAX_OPTIONS:
        return f"{len(options)} options; give 2 to {MAX_OPTIONS}, or none"
    if any(not option or len(option) > MAX_CHARS for option in options):
        return f"an option is empty or has over {MAX_CHARS} characters"
    for text in (question, *options):
        try:
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which is how Python holds bytes that are not UTF-8
            return f"{text[:80]!r} is not valid Unicode; write it in UTF-8"
    return ""
