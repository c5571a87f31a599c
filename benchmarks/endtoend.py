"""The whole service, end to end: `python -m benchmarks.endtoend --data FOLDER [--only backdoor,stack]`.

backdoor: 2 % BadNets in GTSRB, before and after sanitising. stack: the served model under one who knows the student
and under one who knows everything. foreign: images of another world (GTSRB→CIFAR-10, MNIST→Fashion-MNIST). masking: a
defence that hides its gradients and one that was earned, and which of them the evaluation flags. A part that is run
again replaces its earlier rows.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import endtoend_backdoor, endtoend_foreign, endtoend_masking, endtoend_stack
from benchmarks.endtoend_setting import FULL, QUICK, Scene
from benchmarks.harness import commit, earlier, one_of, report
from service.client import WinnowClient
from service.embedded.running import running_stack

PARTS = {
    "backdoor": endtoend_backdoor.rows,
    "stack": endtoend_stack.rows,
    "foreign": endtoend_foreign.rows,
    "masking": endtoend_masking.rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four .npz files")
    parser.add_argument("--only", type=one_of(PARTS), default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--home", type=Path, help="keep the stack here, and go on with what it has made")
    parser.add_argument("--suite", help="of attacks on the served model: quick, standard or full")
    parser.add_argument(
        "--attacked", type=int, help="images that are attacked, at most; half of them by costly attacks"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a smaller run for a first look; writes no file")
    asked = parser.parse_args()
    began = time.monotonic()
    rows, parts = earlier("endtoend", asked.only) if not asked.quick else ([], {})
    with _home(asked.home) as home, running_stack(home) as stack, WinnowClient(stack.url, stack.key) as client:
        given = {name: getattr(asked, name) for name in ("suite", "attacked") if getattr(asked, name) is not None}
        scene = Scene(client, home, asked.data, replace(QUICK if asked.quick else FULL, **given), asked.seed)
        for part in asked.only:
            print(f"{time.strftime('%H:%M:%S')} {part}", flush=True)
            started = time.monotonic()
            found, told = PARTS[part](scene)
            rows += found
            claims, seconds = [each.claim for each in found], round(time.monotonic() - started, 1)
            parts[part] = {"claims": claims, "commit": commit(), "seconds": seconds, **told}
    return report("endtoend", rows, time.monotonic() - began, quick=asked.quick, extra={"parts": parts})


@contextlib.contextmanager
def _home(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
