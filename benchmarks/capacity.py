"""What a set takes, by its size: bytes on storage a row, measured on tables as Winnow writes them, and what follows."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import numpy as np

from service.datasets.shard_writing import ShardWriter
from service.datasets.shards import SHARD_IMAGES, Row
from service.jobs.verdicts import VerdictTable, paged_key
from service.settings import Settings
from service.storage import LocalStorage

ROWS = 100_000
DETECTORS = ("filter", "label_agreement", "label_loss", "neighbours", "spectral_signature", "duplicates")
SIZES = (10_000, 1_000_000, 100_000_000, 1_000_000_000)
GIB = 1024**3


def manifest_bytes(storage: LocalStorage) -> float:
    """A row, with paths such as archives have them. Pixels of one byte: only the manifest counts here."""
    pixels = np.zeros((1, 1, 1), np.uint8)
    with ShardWriter(storage, "set", (1, 1, 1), 43) as writer:
        for index in range(ROWS):
            name = hashlib.sha256(str(index).encode()).hexdigest()
            writer.add(pixels, Row(name, f"train/{index % 43:05}/{index:08}.png", index % 43, 64, 64))
        writer.close()
    return storage.size("set/manifest.parquet") / ROWS


def verdict_bytes(storage: LocalStorage) -> tuple[float, float]:
    """(compressed, in pages) a row, with scores of six detectors that nothing compresses."""
    rng = np.random.default_rng(0)
    scores, own_p = rng.random((ROWS, len(DETECTORS))), rng.random((ROWS, len(DETECTORS)))
    table = VerdictTable.of(
        sample_ids=[hashlib.sha256(str(index).encode()).hexdigest() for index in range(ROWS)],
        paths=[f"train/{index % 43:05}/{index:08}.png" for index in range(ROWS)],
        labels=[f"{index % 43:05}" for index in range(ROWS)],
        verdicts=["quarantine" if p < 0.01 else "keep" for p in own_p.min(axis=1)],
        p_values=own_p.min(axis=1),
        names=DETECTORS,
        scores=scores,
        own_p=own_p,
        spoke=own_p < 0.01,
    )
    table.write(storage, "verdicts.parquet")
    return storage.size("verdicts.parquet") / ROWS, storage.size(paged_key("verdicts.parquet")) / ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=64, help="working resolution")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--upload-bytes", type=int, default=4096, help="of an image as it was uploaded")
    parser.add_argument("--images-a-second", type=float, default=1000.0, help="that one worker scores")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder))
        manifest = manifest_bytes(storage)
        whole, paged = verdict_bytes(storage)
    pixels = args.side**2 * args.channels
    print(f"a row: manifest {manifest:.0f} B, verdicts {whole:.0f} B compressed and {paged:.0f} B in pages")
    print(f"a shard: {SHARD_IMAGES} images, {SHARD_IMAGES * pixels / 1024**2:.1f} MiB")
    print(f"{'images':>13}  {'upload':>9}  {'shards':>9}  {'tables':>9}  {'versions':>8}  {'worker hours':>12}")
    for count in SIZES:
        tables = count * (manifest + whole + paged)
        versions = -(-count // Settings.model_fields["max_images"].default)
        hours = count / args.images_a_second / 3600
        shown = "  ".join(f"{size / GIB:>5.1f} GiB" for size in (count * args.upload_bytes, count * pixels, tables))
        print(f"{count:>13,}  {shown}  {versions:>8,}  {hours:>12.1f}")


if __name__ == "__main__":
    main()
