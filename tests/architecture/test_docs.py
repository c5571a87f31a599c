"""The docs name every setting, every error code, every make target and every job parameter's home."""

from __future__ import annotations

import re
from pathlib import Path

from service.settings import Settings

ROOT = Path(__file__).parents[2]


def test_every_setting_is_documented_once() -> None:
    text = (ROOT / "docs/settings.md").read_text()
    rows = {name: text.count(f"\n| `WINNOW_{name.upper()}` |") for name in Settings.model_fields}
    assert {name: count for name, count in rows.items() if count != 1} == {}


def test_every_error_code_is_documented() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    used: set[str] = set()
    for package in ("service", "worker"):
        for path in (ROOT / package).rglob("*.py"):
            used |= set(re.findall(r"""\bcode["']?\s*[:=]\s*["']([a-z][a-z_]+)["']""", path.read_text()))
    assert len(used) > 50
    assert sorted(code for code in used if f"`{code}`" not in text) == []


def test_the_readme_names_commands_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(named) >= 4
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_no_file_outgrows_its_reason() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for package in ("models", "service", "worker")
        for path in (ROOT / package).rglob("*.py")
        if (count := path.read_text().count("\n")) > 330
    }
    assert long == {}
