"""Serving, measured against bare `session.run` of the same graph in the same run: what HTTP, batching and swaps cost.

Run it on a machine that does nothing else: most rows are ratios of two things measured in turn.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.harness import ClaimRow, quantile_bounds, report, row
from benchmarks.serving_bare import bare_throughput
from benchmarks.serving_client import Blocking, closed_loop, cpu_seconds, open_loop, resident_bytes
from benchmarks.serving_environments import default_cache
from benchmarks.serving_floor import empty_server
from benchmarks.serving_gateway import gateway, infer_request, shared_out
from benchmarks.serving_model import Home, make_home
from benchmarks.serving_peers import Plan, compare
from benchmarks.serving_session import open_session
from benchmarks.serving_swaps import swaps_under_load
from service.registry.bundle import REFORMED, SERVED, STUDENT

CLIENTS = 32


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def latency(home: Home, port: int, calls: int) -> list[ClaimRow]:
    """One request after the other; the same of a server that does nothing, for what HTTP alone costs."""
    bare, asked = _beside_bare(home, port, calls)
    with empty_server() as empty:
        _, nothing = _beside_bare(home, empty, max(100, calls // 4))
    p50, p99 = (1e6 * (np.quantile(asked, q) - np.quantile(bare, q)) for q in (0.5, 0.99))
    low, high = (1e6 * each for each in quantile_bounds(asked, 0.5))
    bare_p50 = 1e6 * np.quantile(bare, 0.5)
    return [
        row(
            "serving/binary/p50-over-bare",
            "<= 250 µs",
            p50,
            p50 <= 250,
            interval=(low - bare_p50, high - bare_p50),
            n=calls,
            unit="µs",
        ),
        row("serving/binary/p99-over-bare", "<= 3000 µs", p99, p99 <= 3000, n=calls, unit="µs"),
        row(
            "serving/http-alone/p50",
            "measured beside",
            1e6 * np.quantile(nothing, 0.5),
            True,
            n=len(nothing),
            unit="µs",
        ),
        row("serving/bare/p50", "measured beside", bare_p50, True, n=calls, unit="µs"),
    ]


def _beside_bare(home: Home, port: int, calls: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of a bare call and of a request with the same image, in turn."""
    session, client = open_session(home.files[SERVED]), Blocking(port)
    bare, asked = np.empty(calls), np.empty(calls)
    for index in range(calls):
        at = index % len(home.images)
        feeds = {"images": home.images[at : at + 1], "masks": home.masks}
        request = infer_request(home, at)
        bare[index] = seconds_of(lambda feeds=feeds: session.run(None, feeds))
        asked[index] = seconds_of(lambda request=request: client.ask(request))
        time.sleep(0.005)  # 200 requests a second, less what they take
    client.close()
    return bare, asked


def throughput(home: Home, port: int, seconds: float, cores: int) -> tuple[list[ClaimRow], float]:
    requests = [infer_request(home, index) for index in range(256)]
    bare = bare_throughput(home, threads=cores, seconds=seconds / 4)
    tally = uvloop.run(closed_loop(port, requests, clients=CLIENTS, seconds=seconds))
    bare = (bare + bare_throughput(home, threads=cores, seconds=seconds / 4)) / 2
    per_second = tally.count(200) / tally.seconds
    ratio = per_second / bare
    return [
        row(f"serving/throughput/{CLIENTS}-clients-over-bare", ">= 0.8", ratio, ratio >= 0.8, n=tally.count(200)),
        row("serving/throughput/images-per-second", "measured", per_second, True, n=tally.count(200), unit="1/s"),
        row("serving/bare/images-per-second", "measured beside", bare, True, unit="1/s"),
    ], per_second


def guarantee(home: Home, calls: int) -> list[ClaimRow]:
    """Detector, reformer and 32 masks in one graph against the plain student under no mask, in turn."""
    rows = []
    for name, size in (("alone", 1), ("batch-8", 8)):
        for graph in (SERVED, REFORMED):
            ratio, n = _ratio_to_plain(home, graph, size, calls // size)
            claim = f"serving/guarantee/{graph.removesuffix('.onnx')}-{name}"
            rows.append(row(claim, "<= 2.5", ratio, ratio <= 2.5, n=n, unit="times the plain student"))
    return rows


def _ratio_to_plain(home: Home, graph: str, size: int, calls: int) -> tuple[float, int]:
    """By the lower quartiles, which another process's work disturbs least."""
    whole, plain = open_session(home.files[graph]), open_session(home.files[STUDENT])
    images, ones = home.images[:size], np.ones((1, home.masks.shape[1]), np.float32)
    with_masks, without = {"images": images, "masks": home.masks}, {"images": images, "masks": ones}
    seconds = [
        (seconds_of(lambda: whole.run(None, with_masks)), seconds_of(lambda: plain.run(None, without)))
        for _ in range(calls)
    ]
    guarded, bare = np.quantile(np.array(seconds), 0.25, axis=0)
    return float(guarded / bare), calls


def identity(home: Home, port: int) -> list[ClaimRow]:
    """One image alone, and in 50 random batches, over HTTP: the bytes of its probabilities."""
    rng, client, differing = np.random.default_rng(0), Blocking(port), 0
    tail = 43 * 4
    alone = client.ask(infer_request(home, 0))[1][-tail:]
    for _ in range(50):
        count = int(rng.integers(1, 64))
        start = int(rng.integers(1, len(home.images) - count))
        batch = Home(home.settings, home.key, _with_first(home.images, start, count), home.masks, home.files)
        status, body = client.ask(infer_request(batch, 0, count=count + 1))
        differing += status != 200 or body[-(count + 1) * tail :][:tail] != alone
    client.close()
    return [row("serving/bit-identity/batches-that-differ", "0 of 50", differing, differing == 0, n=50)]


def _with_first(images: NDArray[np.uint8], start: int, count: int) -> NDArray[np.uint8]:
    return np.concatenate([images[:1], images[start : start + count]])


def overload(home: Home, port: int, pid: int, peak: float, seconds: float) -> list[ClaimRow]:
    requests, before = [infer_request(home, index) for index in range(256)], resident_bytes(pid)
    tally = uvloop.run(open_loop(port, requests, per_second=5 * peak, seconds=seconds))
    goodput = tally.count(200) / tally.seconds / peak
    refused = [seconds for status in (429, 503) for seconds in tally.latencies.get(status, [])]
    others = sum(tally.count(status) for status in tally.latencies if status not in (200, 429, 503)) + tally.failures
    slowest = 1e3 * float(np.quantile(refused, 0.99)) if refused else 0.0
    grown = (resident_bytes(pid) - before) / 2**20
    return [
        row("serving/overload/goodput-over-peak", ">= 0.9", goodput, goodput >= 0.9, n=tally.count(200)),
        row("serving/overload/refusal-p99", "< 20 ms", slowest, slowest < 20, n=len(refused), unit="ms"),
        row("serving/overload/other-failures", "0", others, others == 0),
        row("serving/overload/memory-growth", "< 64 MiB", grown, grown < 64, unit="MiB"),
    ]


def idle(pid: int, seconds: float) -> list[ClaimRow]:
    before = cpu_seconds(pid)
    time.sleep(seconds)
    share = (cpu_seconds(pid) - before) / seconds
    return [row("serving/idle/core-share", "< 0.02", share, share < 0.02, n=1, unit="of a core")]


def measure(home: Home, *, quick: bool, cores: int) -> list[ClaimRow]:
    seconds = 3.0 if quick else 15.0
    rows = guarantee(home, 160 if quick else 800)
    with gateway(home, **shared_out(cores)) as (port, process):
        rows += latency(home, port, 300 if quick else 3000)
        rows += identity(home, port)
        found, peak = throughput(home, port, seconds, cores)
        rows += found
        rows += overload(home, port, process.pid, peak, seconds)
        rows += swaps_under_load(home, port, 20 if quick else 100)
        rows += idle(process.pid, seconds)
    return rows


def main() -> int:
    chosen = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended with this process
    began = time.monotonic()
    peers: object = "not measured in this run"
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as folder:
        home = make_home(Path(folder), chosen.data)
        rows = measure(home, quick=chosen.quick, cores=chosen.cores)
        if chosen.peers if chosen.peers is not None else not chosen.quick:
            plan = Plan.of(chosen.peers_cache, chosen.cores, chosen.rounds, quick=chosen.quick)
            found, peers = compare(home, plan)
            rows += found
    return report("serving", rows, time.monotonic() - began, quick=chosen.quick, extra={"peers": peers})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with gtsrb.npz; noise without it")
    parser.add_argument("--quick", action="store_true", help="shorter, and writes no file")
    parser.add_argument(
        "--cores", type=int, default=2, help="processes of the gateway, and threads of the bare session"
    )
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, help="MLServer, LitServe, BentoML; not if quick"
    )
    parser.add_argument(
        "--peers-cache", type=Path, default=default_cache(), help="folder for what they are installed in"
    )
    parser.add_argument("--rounds", type=int, default=6, help="of Winnow, the peers and the bare session, in turns")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
