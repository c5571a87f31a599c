"""What the comparison with other servers must hold: right answers first, nobody missing unnoticed, gRPC to the byte."""

from __future__ import annotations

import asyncio
import struct

import numpy as np
import pytest

from benchmarks.serving_environments import PeerFailed
from benchmarks.serving_grpc import FRAME, PREFACE, GrpcConnection, infer_message, raw_output
from benchmarks.serving_peer import PEERS
from benchmarks.serving_peers import Found, rows
from benchmarks.serving_target import Target, check

ROUNDS = {
    "winnow": [30.0, 20.0, 40.0, 30.0, 32.0, 28.0],
    "mlserver": [10.0, 10.0, 10.0, 10.0, 10.0, 10.0],
    "litserve": [15.0, 10.0, 16.0, 15.0, 16.0, 14.0],
    "bentoml": [90.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "bare-session": [50.0, 50.0, 50.0, 50.0, 50.0, 50.0],
}


def test_the_claim_is_over_the_peer_of_the_greatest_median_round_by_round() -> None:
    claim = rows(Found(ROUNDS))[-1]
    assert claim.unit == "times litserve"
    assert (claim.measured, claim.low, claim.high, claim.n) == (2.0, 2.0, 2.5, 6)
    assert claim.holds


def test_a_missing_peer_has_a_row_and_the_claim_does_not_hold() -> None:
    present = {name: rates for name, rates in ROUNDS.items() if name != "bentoml"}
    table = {each.claim: each for each in rows(Found(present, absent={"bentoml": "no such package"}))}
    missing = table["serving/peers/bentoml/images-per-second"]
    assert (missing.measured, missing.n, missing.holds) == (0.0, 0, False)
    claim = table["serving/peers/winnow-over-best"]
    assert claim.measured == 2.0
    assert not claim.holds


def test_without_any_peer_nothing_is_claimed() -> None:
    own = {name: ROUNDS[name] for name in ("winnow", "bare-session")}
    claim = rows(Found(own, absent={peer.package: "no network" for peer in PEERS}))[-1]
    assert (claim.measured, claim.n, claim.holds) == (0.0, 0, False)


def test_few_rounds_have_no_interval() -> None:
    claim = rows(Found({name: rates[:2] for name, rates in ROUNDS.items()}))[-1]
    assert claim.low is None
    assert claim.high is None


def test_every_setting_uses_all_cores_and_none_comes_twice() -> None:
    for peer in PEERS:
        for cores in (1, 2, 4):
            settings = peer.settings(cores)
            assert len(set(settings)) == len(settings)
            assert all(each.workers * each.calls * each.threads == cores for each in settings)


class Echo:
    """A server that answers each request by its own bytes."""

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        return (200, request) if request else (503, b"busy")


def echo(requests: list[bytes]) -> Target:
    async def dial(_port: int) -> Echo:
        return Echo()

    return Target("echo", 0, dial, requests, bytes)


def test_an_answer_that_is_another_images_is_found() -> None:
    wanted = np.random.default_rng(0).random((40, 3), np.float32)
    asked = [row.tobytes() for row in wanted]
    check(echo(asked), wanted)
    with pytest.raises(PeerFailed, match="image 7 otherwise"):
        check(echo([*asked[:7], asked[8], asked[7], *asked[9:]]), wanted)
    with pytest.raises(PeerFailed, match="image 0 otherwise"):
        check(echo([row[:2].tobytes() for row in wanted]), wanted)
    with pytest.raises(PeerFailed, match="answers 503"):
        check(echo([*asked[:-1], b""]), wanted)


def test_a_request_over_grpc_is_what_protobuf_makes_of_it() -> None:
    made = b"\n\x07student*\x13\n\x06images\x12\x05BYTES\x1a\x02\x01\x01:\x05\x01\x00\x00\x00x"  # by Google's library
    assert infer_message("student", b"x") == made
    long = infer_message("student", bytes(3072))
    assert long.endswith(b":\x84\x18" + struct.pack("<I", 3072) + bytes(3072))


def test_an_answer_over_grpc_is_read_past_fields_of_any_length() -> None:
    raw = struct.pack("<I", 172) + bytes(range(172))
    message = b"\n\x07student" + b"*\xc8\x01" + bytes(200) + b"2\xb0\x01" + raw
    assert raw_output(message) == bytes(range(172))
    with pytest.raises(ValueError, match="no raw contents"):
        raw_output(b"\n\x07student")


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


async def exchanged(answer: bytes) -> tuple[tuple[int, bytes], bytes]:
    """What a call gives where the server sends `answer`, byte by byte; and what the client wrote."""
    connection, wire = GrpcConnection(), Wire()
    connection.connection_made(wire)
    call = asyncio.create_task(connection.ask(b"request"))
    await asyncio.sleep(0)
    for byte in answer:
        connection.data_received(bytes([byte]))
    return await call, wire.written


def test_a_call_over_grpc_ends_with_the_trailers() -> None:
    message = b"\x00" + (7).to_bytes(4, "big") + b"message"
    ping = frame(6, 0, 0, b"pingpong")
    answer = (
        ping + frame(1, 4, 1, b"\x88") + frame(0, 0, 1, message[:6]) + frame(0, 0, 1, message[6:]) + frame(1, 5, 1, b"")
    )
    found, written = asyncio.run(exchanged(answer))
    assert found == (200, b"message")
    assert written.startswith(PREFACE)
    assert frame(0, 1, 1, b"\x00\x00\x00\x00\x07request") in written
    assert written.endswith(frame(6, 1, 0, b"pingpong"))


def test_a_call_over_grpc_without_a_message_has_failed() -> None:
    assert asyncio.run(exchanged(frame(1, 5, 1, b"\x88")))[0] == (500, b"")
    assert asyncio.run(exchanged(frame(3, 0, 1, bytes(4))))[0] == (500, b"")
