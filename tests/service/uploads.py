"""Small uploads of every format, honest ones: two classes, eight images, the same pixels in each."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ("no entry", "stop")
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 0, 1, 0, 0, 1])


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


FILES = [encoded(image) for image in IMAGES]


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def folders(prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{NAMES[label]}/{i}.png": FILES[i] for i, label in enumerate(LABELS)}


def table_csv() -> dict[str, bytes]:
    rows = [f'{i}.png,"{NAMES[label]}"' for i, label in enumerate(LABELS)]
    text = "\n".join(["file_name,label", *rows])
    return {"metadata.csv": text.encode(), **{f"{i}.png": data for i, data in enumerate(FILES)}}


def table_jsonl() -> dict[str, bytes]:
    rows = [json.dumps({"file_name": f"images/{i}.png", "label": NAMES[label]}) for i, label in enumerate(LABELS)]
    return {
        "set/metadata.jsonl": "\n".join(rows).encode(),
        **{f"set/images/{i}.png": data for i, data in enumerate(FILES)},
    }


def keyed(label: str = "json") -> dict[str, bytes]:
    """WebDataset, in an order of no use."""
    labels = {
        f"{i:04d}.{label}": json.dumps({"label": int(n), "class_name": NAMES[n]}).encode()
        if label == "json"
        else str(n).encode()
        for i, n in enumerate(LABELS)
    }
    return {**labels, **{f"{i:04d}.png": data for i, data in reversed(list(enumerate(FILES)))}}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_pair(images: np.ndarray = IMAGES[..., 0], labels: np.ndarray = LABELS, zipped: bool = True) -> dict[str, bytes]:
    pack = gzip.compress if zipped else bytes
    return {"train-images-idx3-ubyte": pack(idx(images)), "train-labels-idx1-ubyte": pack(idx(labels))}


def parquet_of(
    labels: pa.Array | None = None, files: list[bytes | None] | None = None, names: tuple[str, ...] | None = NAMES
) -> bytes:
    """As Hugging Face writes it."""
    files = list(FILES) if files is None else files
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(files)], kind)
    columns = pa.table({"image": images, "label": pa.array(LABELS) if labels is None else labels})
    if names is not None:
        told = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        columns = columns.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})})
    sink = io.BytesIO()
    pq.write_table(columns, sink, row_group_size=3)
    return sink.getvalue()


def npz_of(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


UPLOADS = {
    "zip": zip_of(folders()),
    "zip-in-a-folder": zip_of(folders("signs/")),
    "zip-csv": zip_of(table_csv()),
    "tar": tar_of(folders()),
    "tar-gnu": tar_of(folders(), form=tarfile.GNU_FORMAT),
    "tar-ustar": tar_of(folders(), form=tarfile.USTAR_FORMAT),
    "tar.gz": tar_of(folders(), "w:gz"),
    "tar.bz2": tar_of(folders(), "w:bz2"),
    "tar.xz": tar_of(folders(), "w:xz"),
    "tar-jsonl": tar_of(table_jsonl()),
    "webdataset": tar_of(keyed()),
    "webdataset.gz": tar_of(keyed(), "w:gz"),
    "npz": npz_of(images=IMAGES, labels=LABELS, classes=np.array(NAMES)),
    "parquet": parquet_of(),
    "parquet-texts": parquet_of(pa.array([NAMES[n] for n in LABELS]), names=None),
    "parquet-dictionary": parquet_of(pa.array([NAMES[n] for n in LABELS]).dictionary_encode(), names=None),
}
