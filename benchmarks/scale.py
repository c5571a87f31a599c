"""How Winnow grows with workers, images and jobs, over real stacks of drawn images: `python -m benchmarks.scale`.

sharing: one set scored by two workers of one thread each, beside one. million: a zip of 32×32 PNGs ingested and scored
by one worker, beside bare decoding and bare networks, and its memory beside a tenth of the images. jobs: small jobs one
after the other, their latency, and what grows. A part that is run again replaces its earlier rows.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import scale_jobs, scale_million, scale_sharing
from benchmarks.harness import ClaimRow, commit, earlier, one_of, report
from benchmarks.scale_setting import Setting

PARTS: dict[str, Callable[[Setting], list[ClaimRow]]] = {
    "sharing": scale_sharing.rows,
    "million": scale_million.rows,
    "jobs": scale_jobs.rows,
}


def main() -> int:
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a second worker is ended with this process
    began = time.monotonic()
    rows, parts = ([], {}) if asked.quick else earlier("scale", asked.only)
    with tempfile.TemporaryDirectory(prefix="winnow-bench-", dir=asked.scratch) as folder:
        given = (asked.images, asked.shared, asked.rounds, asked.jobs)
        setting = Setting(Path(folder), *((20_000, 6_000, 1, 100) if asked.quick else given))
        for name in asked.only:
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
            started = time.monotonic()
            found = PARTS[name](setting)
            rows += found
            claims, seconds = [each.claim for each in found], round(time.monotonic() - started, 1)
            parts[name] = {"claims": claims, "commit": commit(), "seconds": seconds}
    return report("scale", rows, time.monotonic() - began, quick=asked.quick, extra={"parts": parts})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), type=one_of(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--images", type=int, default=1_000_000, help="to be ingested and scored by one worker")
    parser.add_argument("--shared", type=int, default=60_000, help="to be scored by one worker and by two")
    parser.add_argument("--rounds", type=int, default=5, help="of one worker and two, in turns")
    parser.add_argument("--jobs", type=int, default=20_000, help="small jobs, one after the other")
    parser.add_argument("--scratch", type=Path, help="folder for what is stored")
    parser.add_argument("--quick", action="store_true", help="a smaller run for a first look; writes no file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
