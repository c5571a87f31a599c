"""Takes the body of a prediction request into memory: bounded while it streams, and within a time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from service.serving.errors import BadImages, BodyTooLarge, BodyTooSlow

PATIENT_BYTES = 64 * 1024 * 1024  # of a body already refused, read on so that its sender gets to see why


async def read_body(request: Request, *, max_bytes: int, within_seconds: float) -> bytes:
    """Raises BodyTooLarge, BodyTooSlow, or BadImages where the sender went away."""
    try:
        async with asyncio.timeout(within_seconds):
            return await _collect(request, max_bytes)
    except TimeoutError as error:
        raise BodyTooSlow(
            f"The body did not arrive within {within_seconds:g} s. Send fewer images at once.", retry_after_seconds=1
        ) from error
    except ClientDisconnect as error:
        raise BadImages("The connection ended before the body did.", code="body_cut_short") from error


async def _collect(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes + PATIENT_BYTES:
        raise _too_large(max_bytes)
    body = bytearray()
    refused = 0
    async for chunk in request.stream():
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
