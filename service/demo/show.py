"""What the demo prints: one table, the bars, and where to look further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.demo.findings import Bar, Findings
from service.demo.material import Material

ATTACK_NAMES = {"fgsm": "FGSM", "ifgsm": "I-FGSM", "pgd_margin": "PGD, margin loss", "pgd": "PGD"}


def show_findings(console: Console, found: Findings, material: Material) -> None:
    """The one table. k of n and the 95 % interval stand beside every share."""
    poisoned, candidates = len(material.poisoned), material.counts["candidate"]
    title = f"{candidates} handwritten digits, {poisoned} of them perturbed (ε = {material.eps_linf:g})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    rows: list[tuple[str, object]] = [("poison found", found.poison_found)]
    rows += [(f"  by {ATTACK_NAMES.get(name, name)}", share) for name, share in found.found_by_attack.items()]
    rows.append((f"clean lost (α = {found.alpha:g})", found.clean_lost))
    rows.append(("  poison told from clean (AUROC)", f"{found.auroc:7.4f}"))
    rows.append(("student's accuracy, clean test images", found.accuracy["clean"]))
    rows.append(("  attacked by the stranger's network", found.accuracy["attacked"]))
    rows += [
        (f"  attacked through the student itself, {ATTACK_NAMES.get(name, name)}", share)
        for name, share in found.white_box.items()
        if name != "clean"
    ]
    rows += [
        (f"answered null, {kind} images{_why(found.reasons[kind])}", share) for kind, share in found.abstained.items()
    ]
    for name, value in rows:
        table.add_row(name, str(value))
    console.print()
    console.print(table, highlight=False)


def _why(reasons: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{count} {reason}' for reason, count in reasons.items())})" if reasons else ""


def show_bars(console: Console, bars: Sequence[Bar]) -> bool:
    """Say which bars hold; gives whether all do."""
    console.print()
    for bar in bars:
        mark = "[green]holds[/]" if bar.holds else "[bold red]FAILS[/]"
        console.print(f"{mark}  {bar.name}: {bar.measured}, wanted {bar.wanted}", highlight=False)
    return all(bar.holds for bar in bars)


def show_reports(console: Console, paths: Sequence[Path]) -> None:
    console.print("\nReports:")
    for path in paths:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
