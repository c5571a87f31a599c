"""Reads a multipart form of image files out of a body that is already bounded. Nothing touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.serving.errors import BadImages, TooManyImages

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

LONGEST_NAME = 100  # of what is repeated in a message


@dataclass(frozen=True)
class FormFile:
    """An encoded image and what its sender calls it."""

    name: str
    data: bytes


def read_form(body: bytes, content_type: str, *, field: str, most: int) -> list[FormFile]:
    """The parts of a form, all of which must be named `field`. Raises BadImages or TooManyImages."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise _malformed("its Content-Type names no boundary")
    form = _Form(field, most)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _malformed(str(error)) from error
    if not form.ended:
        raise _malformed("it ends before its last boundary")
    if not form.files:
        raise BadImages(f"The form holds no files. Send each image as a file in the field {field!r}.", code="no_images")
    return form.files


class _Form:
    """Collects the parts as the parser comes upon them."""

    def __init__(self, field: str, most: int) -> None:
        self.files: list[FormFile] = []
        self.ended = False
        self._field = field
        self._most = most
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._name = ""
        self._data: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._take_header_name,
            "on_header_value": self._take_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check_part,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        if len(self.files) == self._most:
            raise TooManyImages(f"The form holds more than the {self._most} images accepted at once.")
        self._header_name, self._header_value, self._disposition, self._data = b"", b"", b"", []

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name, self._header_value = b"", b""

    def _check_part(self) -> None:
        options = parse_options_header(self._disposition)[1]
        field = _text(options.get(b"name", b""))
        if field != self._field:
            raise BadImages(
                f"The form has a field {field!r}. Send each image as a file in the field {self._field!r}, "
                "and parameters such as alpha in the query.",
                code="unknown_field",
            )
        self._name = _text(options.get(b"filename", b"")) or f"part {len(self.files)}"

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end_part(self) -> None:
        self.files.append(FormFile(self._name, b"".join(self._data)))

    def _end(self) -> None:
        self.ended = True


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")[:LONGEST_NAME]


def _malformed(why: str) -> BadImages:
    return BadImages(f"The body is no whole multipart form: {why}. Send it again.", code="malformed_form")
