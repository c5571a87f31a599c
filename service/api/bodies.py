"""Takes the body of a request into memory: bounded while it streams, and within a time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Receive

from service.serving.errors import BadImages, BodyTooLarge, BodyTooSlow

PATIENT_BYTES = 64 * 1024 * 1024  # of a body already refused, read on so that its sender gets to see why


async def read_body(request: Request, *, max_bytes: int, within_seconds: float) -> bytes:
    """As `receive_body`."""
    announced = request.headers.get("content-length", "0")
    return await receive_body(request.receive, announced, max_bytes=max_bytes, within_seconds=within_seconds)


async def receive_body(receive: Receive, announced: str, *, max_bytes: int, within_seconds: float) -> bytes:
    """announced: its Content-Length. Raises BodyTooLarge, BodyTooSlow, or BadImages where the sender went away."""
    if announced.isdecimal() and int(announced) > max_bytes + PATIENT_BYTES:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(within_seconds):
            return await _collect(receive, max_bytes)
    except TimeoutError as error:
        raise BodyTooSlow(
            f"The body did not arrive within {within_seconds:g} s. Send fewer images at once.", retry_after_seconds=1
        ) from error


async def _collect(receive: Receive, max_bytes: int) -> bytes:
    body, refused, more = bytearray(), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadImages("The connection ended before the body did.", code="body_cut_short")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        if refused or len(body) + len(chunk) > max_bytes:
            body.clear()
            refused += len(chunk)
            if refused > PATIENT_BYTES:
                break
        else:
            body += chunk
    if refused:
        raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {max_bytes} bytes accepted. Send fewer images at once.")
