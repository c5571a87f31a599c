"""What the description of the cluster must keep: limits, users, no secret with a default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.secrets import KNOWN
from service.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_has_limits_and_starts_again(name: str) -> None:
    service = COMPOSE["services"][name]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_says_whether_it_is_well(name: str) -> None:
    service = COMPOSE["services"][name]
    if "build" in service:
        assert "HEALTHCHECK" in (ROOT / service["build"]["dockerfile"]).read_text()
    else:
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = re.findall(r"\$\{(WINNOW_\w*(?:PASSWORD|KEY)\w*)([^}]*)\}", text)
    assert len(used) >= 8
    assert [name for name, rest in used if not rest.startswith(":?")] == []


def test_what_the_example_leaves_is_refused() -> None:
    lines = (ROOT / "docker/secrets.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    required = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    assert set(given) == required
    secrets = {name: value for name, value in given.items() if not name.endswith("_ID")}
    assert len(secrets) == 3 and set(secrets.values()) <= KNOWN


def test_every_setting_in_it_is_one() -> None:
    known = {f"WINNOW_{name.upper()}" for name in Settings.model_fields}
    for name in ("gateway", "worker-gpu", "worker-cpu"):
        environment = COMPOSE["services"][name]["environment"]
        assert {key for key in environment if key.startswith("WINNOW_")} <= known


@pytest.mark.parametrize("name", ["gateway", "worker", "s3-stand-in"])
def test_images_run_as_nobody_in_particular_with_locked_versions(name: str) -> None:
    text = (ROOT / f"docker/{name}.Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001"]
    assert all("constraints.txt" in line or "--no-deps" in line for line in _installs(text))
    assert "worker worker" not in text or name == "worker"


def _installs(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if "pip install" in line]


def test_every_worker_is_shown_all_gpus_and_takes_one() -> None:
    """A count of n would be the first n for every replica."""
    worker = COMPOSE["services"]["worker-gpu"]
    (devices,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert devices["count"] == "all"
    assert worker["environment"]["WINNOW_GPU_LOCKS"] == "${WINNOW_GPU_LOCKS-/gpus}"
    assert worker["volumes"] == ["gpus:/gpus"] and "gpus" in COMPOSE["volumes"]
    assert "install -d -o winnow /data /gpus" in (ROOT / "docker/worker.Dockerfile").read_text()
