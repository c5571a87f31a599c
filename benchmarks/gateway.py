"""What the gateway promises of sizes and speeds, over a real stack: `python -m benchmarks.gateway --data FOLDER`.

upload: a file of 10 GB in, its memory and its rate, and 20 disconnects. ingest: 60,000 JPEGs of a zip against a bare
decode loop. verdicts: pages out of a million rows, on SQLite and on PostgreSQL. once: a thousand POSTs with one
idempotency key. A part that is run again replaces its earlier rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import gateway_ingest, gateway_once, gateway_upload, gateway_verdicts
from benchmarks.gateway_setting import FULL, GIB, QUICK, Setting
from benchmarks.harness import ClaimRow, commit, earlier, one_of, report

PARTS: dict[str, Callable[[Setting], list[ClaimRow]]] = {
    "upload": gateway_upload.rows,
    "ingest": gateway_ingest.rows,
    "verdicts": gateway_verdicts.rows,
    "once": gateway_once.rows,
}


def main() -> int:
    asked = _arguments()
    began = time.monotonic()
    rows, parts = ([], {}) if asked.quick else earlier("gateway", asked.only)
    scale = QUICK if asked.quick else FULL
    upload_bytes = int(asked.gigabytes * GIB) if asked.gigabytes else scale.upload_bytes
    with tempfile.TemporaryDirectory(prefix="winnow-bench-", dir=asked.scratch) as folder:
        setting = Setting(Path(folder), asked.data, scale, upload_bytes)
        for name in asked.only:
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
            started = time.monotonic()
            found = PARTS[name](setting)
            rows += found
            claims, seconds = [each.claim for each in found], round(time.monotonic() - started, 1)
            parts[name] = {"claims": claims, "commit": commit(), "seconds": seconds}
    return report("gateway", rows, time.monotonic() - began, quick=asked.quick, extra={"parts": parts})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10-imagefolder.zip")
    parser.add_argument("--only", default=",".join(PARTS), type=one_of(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--gigabytes", type=float, help="size of the upload; default: 10, quick 1")
    parser.add_argument("--scratch", type=Path, help="folder for what is uploaded; takes four times that size")
    parser.add_argument("--quick", action="store_true", help="a smaller run for a first look; writes no file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
