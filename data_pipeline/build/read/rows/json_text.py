"""JSON of any size, value by value: only the value that is being read is in memory, and it has a cap."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_NEAR_END = 16  # a literal, a number or an escape that is cut by the end of the buffer is shorter


class JsonError(ValueError):
    """The text is not JSON, or a value is larger than the cap. What was read before is sound."""


class JsonText:
    """A reader's place in a text of JSON. Raises JsonError; OSError where the stream fails."""

    def __init__(self, stream: BinaryIO, max_value: int):
        self.stream = stream
        self.max_value = max_value
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.at = 0
        self.ended = False

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._fill():
                return ""

    def take(self, wanted: str) -> None:
        if (found := self.peek()) != wanted:
            raise JsonError(f"expected {wanted!r}, found {found!r}" if found else "the text is cut off")
        self.at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as e:
                cut = e.pos >= len(self.text) - _NEAR_END or e.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    raise JsonError(e.msg if not self.ended else f"{e.msg}: the text is cut off") from None
            except (ValueError, RecursionError) as e:  # a number of thousands of digits; too deep
                raise JsonError(str(e)) from None
            else:
                # A number at the end of the buffer may go on in the next chunk.
                if end - self.at <= self.max_value and (end < len(self.text) or self.ended):
                    self.at = end
                    return value
            if len(self.text) - self.at > self.max_value:
                raise JsonError(f"a value of more than {self.max_value:,} characters")
            self._fill()

    def elements(self) -> Iterator[Any]:
        """The elements of the list that begins here."""
        self.take("[")
        if self.peek() != "]":
            yield self.value()
            while self.peek() == ",":
                self.take(",")
                yield self.value()
        self.take("]")

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here. After each, the caller must read its value."""
        self.take("{")
        while self.peek() != "}":
            key = self.value()
            if not isinstance(key, str):
                raise JsonError(f"expected a key, found {type(key).__name__}")
            self.take(":")
            yield key
            if self.peek() != "}":
                self.take(",")
        self.take("}")

    def _fill(self) -> bool:
        if self.ended:
            return False
        # As much again as there is: a large value is then parsed a few times, not once a chunk.
        data = self.stream.read(max(_CHUNK, len(self.text) - self.at))
        self.ended = not data
        try:
            more = self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as e:
            raise JsonError(f"not UTF-8: {e.reason}") from None
        self.text = self.text[self.at :] + more
        self.at = 0
        return not self.ended
