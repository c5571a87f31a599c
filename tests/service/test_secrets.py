"""A part of a cluster does not start with a secret that everybody knows."""

from __future__ import annotations

import pytest

from service.errors import InvalidInput
from service.secrets import refuse_default_secrets
from service.settings import Settings

GOOD = "3f9c"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"database_url": "postgresql://winnow:change-me@db/winnow"}, "WINNOW_DATABASE_URL"),
        ({"redis_url": "redis://:Change%2Dme@redis:6379/0"}, "WINNOW_REDIS_URL"),
    ],
)
def test_a_secret_left_as_it_came_is_refused_by_the_name_of_its_setting(given: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidInput, match=named) as told:
        refuse_default_secrets(Settings(**given))
    assert told.value.code == "default_secret"
    assert "change-me" not in told.value.message.lower()


def test_the_key_of_a_bucket_is_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "minioadmin")
    refuse_default_secrets(Settings())
    with pytest.raises(InvalidInput, match="AWS_SECRET_ACCESS_KEY"):
        refuse_default_secrets(Settings(storage_url="s3://b"))


@pytest.mark.parametrize("url", ["", "sqlite:////x", f"postgresql://w:{GOOD}@db/w", "redis+socket:///tmp/s"])
def test_secrets_of_ones_own_and_none_at_all_are_not(url: str) -> None:
    refuse_default_secrets(Settings(database_url=url, redis_url=url))
