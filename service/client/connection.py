"""How the client talks: requests and answers, lists page by page, bodies that go to a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from service.client.answers import WireT, json_object, problem_of, validated
from service.client.errors import CannotReach
from service.client.pieces import CHUNK_BYTES

IDLE_CONNECTION_S = 3.0  # under the server's own 5 s, so that no request meets a connection that is being closed


class Connection:
    """To one service, with one key."""

    def __init__(self, url: str, key: str, *, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {key}"},
                timeout=httpx.Timeout(timeout_s, connect=5.0),
                limits=httpx.Limits(keepalive_expiry=IDLE_CONNECTION_S),
            )
        except httpx.InvalidURL as error:
            raise CannotReach(f"{url!r} is not an address: {error}. Write it like http://127.0.0.1:8080.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _pages(self, path: str, query: Mapping[str, Any], kind: type[WireT]) -> Iterator[WireT]:
        asked = {key: value for key, value in query.items() if value is not None}
        cursor: str | None = None
        while True:
            answer = self._send("GET", path, params=asked if cursor is None else {**asked, "cursor": cursor})
            page = json_object(answer)
            for item in page.get("items", []):
                yield validated(item, kind, answer)
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self._answered(method, path, even=(), **request)

    def _answered(self, method: str, path: str, *, even: Collection[int], **request: Any) -> httpx.Response:
        """An answer of success, or of one of these statuses. Raises ClientError for any other."""
        with self._reached(method, path):
            answer = self._http.request(method, path, **request)
        if answer.is_success or answer.status_code in even:
            return answer
        raise problem_of(answer)

    @contextmanager
    def _streamed(
        self, path: str, query: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """An answer whose body the caller reads."""
        stream = self._http.stream("GET", path, params=dict(query), headers=dict(headers or {}))
        with self._reached("GET", path), stream as answer:
            if not answer.is_success:
                answer.read()
                raise problem_of(answer)
            yield answer

    @contextmanager
    def _reached(self, method: str, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise CannotReach(f"{self.url} did not answer in time ({method} {path}).") from error
        except httpx.TransportError as error:
            raise CannotReach(
                f"Cannot reach Winnow at {self.url}: {error}. Is it running? Start it with 'winnow up', or give "
                "the address of another with --url."
            ) from error

    def _saved(
        self,
        path: str,
        query: Mapping[str, Any],
        to: str | PathLike[str],
        on_received: Callable[[int], None] | None = None,
    ) -> Path:
        """The body as a file; `to` holds the whole of it or is not touched."""
        target = Path(to)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with self._streamed(path, query) as answer, partial.open("wb") as file:
                for piece in answer.iter_bytes(CHUNK_BYTES):
                    file.write(piece)
                    if on_received is not None:
                        on_received(answer.num_bytes_downloaded)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target
