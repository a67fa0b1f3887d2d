"""Server-sent events, whatever a server makes of them."""

from __future__ import annotations

import pytest

from vcllm.engine.events import EventReader, TooLong

STREAM = (
    b"\xef\xbb\xbfdata: one\n\n: a comment\n\ndata:two\r\n\r\nevent: error\rdata:  three\rdata: more\r\r"
    b"id: 7\n\ndata\n\ndata: \xe6\xb0\xb4\n\n"
)
EVENTS = [b"one", b"two", b" three\nmore", "水".encode()]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, len(STREAM)])
def test_events_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    """All three line ends, comments, other fields, several data lines, a byte order mark, half a character."""
    reader = EventReader(100)

    events = [event for at in range(0, len(STREAM), size) for event in reader.feed(STREAM[at : at + size])]

    assert events == EVENTS
    assert reader.end() is None


@pytest.mark.parametrize("rest", [b"data: last", b"data: last\n", b"data: last\r\n"])
def test_what_lacks_its_empty_line_is_there_at_the_end(rest: bytes) -> None:
    reader = EventReader(100)

    assert reader.feed(rest) == []
    assert reader.end() == b"last"
    assert reader.end() is None


@pytest.mark.parametrize("line", [b"data: x\n", b"x"], ids=["many lines", "one line"])
def test_an_endless_event_is_given_up(line: bytes) -> None:
    """Before it fills the memory."""
    reader = EventReader(1000)

    with pytest.raises(TooLong):
        for _ in range(5000):
            reader.feed(line)
