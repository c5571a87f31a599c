"""A data set through the real stack: in as Parquet, out in another format, in again by another reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.client import WinnowClient
from tests.integration.conftest import finished
from tests.service.uploads import LABELS, NAMES, UPLOADS


@pytest.mark.parametrize(("form", "suffix"), [("webdataset", "tar"), ("parquet", "parquet")])
def test_parquet_in_and_out_and_in_again(client: WinnowClient, tmp_path: Path, form: str, suffix: str) -> None:
    source = tmp_path / "signs.parquet"
    source.write_bytes(UPLOADS["parquet"])
    first = finished(client, client.upload_dataset("parquet-in", source)).result
    assert first is not None
    told: list[int] = []
    target = client.export(first["dataset"], tmp_path / f"out.{suffix}", form, on_received=told.append)  # type: ignore[arg-type]
    assert told[-1] == target.stat().st_size
    second = finished(client, client.upload_dataset(f"{form}-again", target)).result
    assert second is not None
    assert second["classes"] == list(NAMES)
    assert (second["num_samples"], second["image_shape"]) == (len(LABELS), [9, 9, 3])
    assert client.dataset(second["dataset"]).digest == client.dataset(first["dataset"]).digest
