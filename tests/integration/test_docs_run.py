"""The examples of the docs, run as they stand against a real stack."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from service.api.schemas import JobRequest
from service.embedded.running import RunningStack, running_stack
from tests.integration.conftest import FAST_DISTILL, FAST_EVALUATE, FAST_FILTER, Digits, chosen_parts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def folder_zip(digits: Digits, rows: slice) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (image, label) in enumerate(zip(digits.images[rows], digits.labels[rows], strict=True)):
            archive.writestr(f"{label}/{number}.png", png(image))
    return buffer.getvalue()


def png(image: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One of its own, in which the examples make the first versions of their names."""
    with (
        chosen_parts(request, tmp_path_factory) as own,
        running_stack(tmp_path_factory.mktemp("docs"), environment=own) as running,
    ):
        yield running


@pytest.fixture
def place(tmp_path: Path, stack: RunningStack, digits: Digits) -> Path:
    """A folder with the files that the examples name, and a home whose stack is the one that runs."""
    (tmp_path / ".winnow").symlink_to(stack.home)
    (tmp_path / "signs.zip").write_bytes(folder_zip(digits, slice(240, 640)))
    (tmp_path / "trusted.zip").write_bytes(folder_zip(digits, slice(0, 240)))
    for number, name in enumerate(("stop", "yield")):
        (tmp_path / f"{name}.png").write_bytes(png(digits.images[number]))
    return tmp_path


def run(stack: RunningStack, place: Path, command: list[str], text: str) -> str:
    told = text.replace("http://127.0.0.1:8080", stack.url)
    env = {**os.environ, "HOME": str(place), "PYTHONPATH": str(DOCS.parent)}
    done = subprocess.run([*command, told], cwd=place, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_of_the_api_run(stack: RunningStack, place: Path) -> None:
    asked = JobRequest(**json.loads(blocks("api.md", "json")[0])).model_dump(exclude_none=True)
    small = {"sanitise": FAST_FILTER, "distill": FAST_DISTILL, "evaluate": FAST_EVALUATE}
    (place / "harden.json").write_text(json.dumps({**asked, "params": small}))
    (shell,) = blocks("api.md", "sh")
    told = run(stack, place, ["bash", "-euo", "pipefail", "-c"], shell)
    assert '"dataset":"trusted@1"' in told and '"predictions":[{' in told
    assert "succeeded" in (place / "events.txt").read_text()
    assert (place / "verdicts.csv").read_text().startswith('"index",')
    assert "<html" in (place / "report.html").read_text()
    (program,) = blocks("api.md", "python")
    told = run(stack, place, [sys.executable, "-c"], program)
    assert "succeeded" in told and "signs-student@1" in told
    assert (place / "first.png").read_bytes().startswith(b"\x89PNG")


def test_the_webhook_receiver_of_the_docs_verifies_what_is_sent() -> None:
    from service.webhooks.signing import headers, new_secret

    (program,) = blocks("webhooks.md", "python")
    names: dict[str, object] = {}
    exec(compile(program, "webhooks.md", "exec"), names)  # noqa: S102 - our own page
    check = names["is_from_winnow"]
    assert callable(check)
    old, new = new_secret(), new_secret()
    made = headers([new, old], "msg_1", 1, b"{}")
    assert check(old, made, b"{}") and check(new, made, b"{}")
    assert not check(new_secret(), made, b"{}") and not check(new, made, b"{} ")
