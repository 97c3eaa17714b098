"""Streamed text equals the text of all tokens decoded at once, wherever tokens split a character."""

from checkpoints import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from sttm.query.text_stream import TextStream

TOKENIZER = make_tokenizer()


def stream(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    texts = TextStream(TOKENIZER, stop)
    pieces = [texts.push(token) for token in ids]
    return [*pieces, texts.end()], texts


def encode(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@given(st.text())
def test_pieces_are_whole_characters_and_add_up(text: str) -> None:
    pieces, texts = stream(encode(text))
    assert "".join(pieces) == texts.text == TOKENIZER.decode(encode(text), skip_special_tokens=True)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_any_tokens_add_up_to_decoding_all_at_once(ids: list[int]) -> None:
    assert "".join(stream(ids)[0]) == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(st.text(alphabet="ab", max_size=12), st.lists(st.text(alphabet="ab", min_size=1, max_size=3), max_size=3))
def test_text_ends_before_the_first_stop_text_and_shows_none_of_it(text: str, stops: list[str]) -> None:
    pieces, texts = stream(encode(text), tuple(stops))
    ends = [
        min(text.find(s) for s in stops if s in text[:n])
        for n in range(len(text) + 1)
        if any(s in text[:n] for s in stops)
    ]
    expected = text if not ends else text[: ends[0]]
    assert texts.is_stopped == bool(ends)
    assert "".join(pieces) == texts.text == expected


def test_a_character_comes_with_its_last_byte() -> None:
    pieces, _ = stream(encode("a🙂b"))
    assert [p for p in pieces if p] == ["a", "🙂", "b"]
    assert len(pieces) == 1 + 4 + 1 + 1


def test_special_tokens_are_no_text() -> None:
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    assert stream([*encode("a"), end, *encode("b")])[1].text == "ab"
