"""One POST to one address: no redirects, a time for all of it, and no more of the answer than its beginning."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import h11

from service.webhooks.addresses import Refused, Resolve, Target, address_of

MOST_ANSWER_BYTES = 16 * 1024
READ_BYTES = 4096


@dataclass(frozen=True)
class Outcome:
    """status: what was answered; None where nothing was. error: what went wrong, in words."""

    status: int | None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        return self.error is None


async def send(
    target: Target,
    body: bytes,
    headers: Mapping[str, str],
    *,
    resolver: Resolve,
    allow_private: bool,
    within_seconds: float,
) -> Outcome:
    """Never raises for what the receiver, the network or its names do."""
    try:
        async with asyncio.timeout(within_seconds):
            address = await address_of(target, resolver, allow_private=allow_private)
            status = await _post(target, address, body, headers)
    except TimeoutError:
        return Outcome(None, f"no answer within {within_seconds:g} s")
    except Refused as error:
        return Outcome(None, str(error))
    except ssl.SSLError as error:
        return Outcome(None, f"TLS: {error.reason or error}")
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no name
        return Outcome(None, f"cannot connect: {error}")
    except h11.RemoteProtocolError as error:
        return Outcome(None, f"that is no HTTP: {error}")
    return Outcome(status, _complaint(status))


def _complaint(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    return f"answered {status}" + (", and redirects are not followed" if 300 <= status < 400 else "")


async def _post(target: Target, address: str, body: bytes, headers: Mapping[str, str]) -> int:
    """TLS is checked against the name; the connection goes to the address, which was looked at before."""
    tls = ssl.create_default_context() if target.scheme == "https" else None
    name = target.host if tls else None
    reader, writer = await asyncio.open_connection(
        address, target.port, limit=MOST_ANSWER_BYTES, ssl=tls, server_hostname=name
    )
    try:
        told = {"Host": target.host_header, **headers, "Content-Length": str(len(body)), "Connection": "close"}
        wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_ANSWER_BYTES)
        request = h11.Request(method="POST", target=target.path, headers=list(told.items()))
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(wire.send(event) or b"")
        await writer.drain()
        return await _status(wire, reader)
    finally:
        writer.transport.abort()  # the answer's body is of no interest


async def _status(wire: h11.Connection, reader: asyncio.StreamReader) -> int:
    received = 0
    while True:
        event = wire.next_event()
        if isinstance(event, h11.Response):
            return event.status_code
        if event is h11.NEED_DATA:
            piece = await reader.read(READ_BYTES)
            received += len(piece)
            if received > MOST_ANSWER_BYTES:
                raise h11.RemoteProtocolError(f"a head of more than {MOST_ANSWER_BYTES} bytes")
            wire.receive_data(piece)
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the connection ended before an answer")
