"""The demo from start to end: a temporary home, a stack in it, the pipeline, the table, and nothing left behind."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from rich.console import Console

from service.cli.show import JobProgress
from service.client import WinnowClient
from service.demo.findings import findings
from service.demo.material import MaterialInTheMaking
from service.demo.pipeline import run_pipeline, save_reports
from service.demo.show import show_bars, show_findings, show_reports
from service.embedded.running import RunningStack, running_stack
from service.errors import WinnowError


def run_demo(*, keep: bool, seed: int, reports: Path | None) -> bool:
    """Whether the pipeline did its work. What it did not do is printed."""
    console = Console()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="winnow-demo-"))
    home = folder / "home"
    passed = False
    try:
        with MaterialInTheMaking(folder / "images", seed) as making, running_stack(home) as stack:
            console.print(f"stack ready in {stack.ready_after_s:.1f} s at {stack.url}", highlight=False)
            passed = _show_it(console, stack, making, reports or folder / "reports")
            console.print(f"\n{time.monotonic() - began:.0f} s in all.", highlight=False)
            if keep:
                _stay(console, stack)
    except WinnowError as error:
        console.print(f"[red]{error}[/]", highlight=False, soft_wrap=True)
    finally:
        shutil.rmtree(folder / "images", ignore_errors=True)
        _tidy(console, home, remove=passed and not keep)
    return passed


def _show_it(console: Console, stack: RunningStack, making: MaterialInTheMaking, reports: Path) -> bool:
    material = making.wait()
    counts = material.counts
    console.print(
        f"{counts['reference']} trusted images, {counts['test']} test images, {counts['candidate']} candidates, "
        f"{len(material.poisoned)} of them poisoned by a network that Winnow never sees",
        highlight=False,
        soft_wrap=True,
    )
    with WinnowClient(stack.url, stack.key) as client:
        with JobProgress(console).live() as progress:
            answers = run_pipeline(client, material, progress.update)
        saved = save_reports(client, answers.harden, reports)
    found = findings(answers, material)
    show_findings(console, found, material)
    passed = show_bars(console, found.bars())
    show_reports(console, saved)
    return passed


def _stay(console: Console, stack: RunningStack) -> None:
    console.print(f"\nThe stack stays up at {stack.url} (docs at {stack.url}/docs).", highlight=False)
    console.print(f"Admin key in {stack.key_path}. Ctrl-C ends it.", highlight=False, soft_wrap=True)
    try:
        stack.process.wait()
    except KeyboardInterrupt:
        console.print("ending it")


def _tidy(console: Console, home: Path, *, remove: bool) -> None:
    if remove:
        shutil.rmtree(home, ignore_errors=True)
    elif home.exists():
        console.print(
            f"The home is kept in {home}: 'winnow up --home {home}' starts it again.", highlight=False, soft_wrap=True
        )
