"""What the demo prints: one table, the bars, and where to look further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.demo.findings import Bar, Findings, Share
from service.demo.material import Material

ATTACK_NAMES = {
    "fgsm": "FGSM",
    "ifgsm": "I-FGSM",
    "pgd-margin": "PGD, margin loss",
    "pgd-cross-entropy": "PGD, cross-entropy",
}
POISON_NAMES = {
    "fgsm": "perturbed by FGSM",
    "ifgsm": "perturbed by I-FGSM",
    "trigger": "triggered",
    "flip": "mislabelled",
}


def show_findings(console: Console, found: Findings, material: Material) -> None:
    """The one table: every share with its count and its 95 % interval."""
    poisoned, candidates = len(material.poisoned), material.counts["candidate"]
    table = Table(
        title=f"{candidates} handwritten digits, {poisoned} of them poisoned",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("", "share", "count", "95 % interval"):
        table.add_column(heading, no_wrap=True, justify="right" if heading else "left")
    for name, value in _rows(found):
        table.add_row(name, *(_cells(value) if isinstance(value, Share) else (value,)))
    console.print()
    console.print(table, highlight=False)


def _rows(found: Findings) -> Iterator[tuple[str, Share | str]]:
    yield "poison found", found.poison_found
    for kind, share in found.found_by_attack.items():
        yield f"  {POISON_NAMES.get(kind, kind)}", share
    yield f"clean lost (α = {found.alpha:g})", found.clean_lost
    yield "AUROC of the p-value", f"{found.auroc:.4f}"
    yield "student's accuracy on clean images", found.accuracy["clean"]
    yield "  attacked by a stranger's network", found.accuracy["attacked"]
    for attack, share in found.white_box.items():
        yield f"  {_named(attack)}, against itself", share
    for refusals in found.refusals:
        yield f"answered null (α = {refusals.alpha:g})", ""
        for kind, share in refusals.share.items():
            yield f"  {kind} images", share
            for reason, count in refusals.reasons[kind].items():
                yield f"    because {reason}", Share(count, share.n)


def _named(attack: str) -> str:
    return ATTACK_NAMES.get(attack, attack)


def _cells(share: Share) -> tuple[str, str, str]:
    low, high = share.interval
    return f"{share.value:.2%}", f"{share.k} of {share.n}", f"{low:.1%} to {high:.1%}"


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
