"""Where bytes live: one protocol, a folder or a bucket behind it, chosen by settings."""

from __future__ import annotations

from service.errors import Unavailable
from service.settings import Settings
from service.storage.folder import LocalStorage
from service.storage.protocol import Entry, Storage, StorageUnavailable

__all__ = ["Entry", "LocalStorage", "Storage", "StorageUnavailable", "open_storage"]


def open_storage(settings: Settings) -> Storage:
    """The bucket of WINNOW_STORAGE_URL where that is set, else the folder. Call it after a fork, not before."""
    if not settings.storage_url:
        return LocalStorage(settings.storage)
    try:
        from service.storage.s3 import Place, S3Storage
    except ImportError as error:
        raise Unavailable(
            "WINNOW_STORAGE_URL names a bucket, and obstore is not installed: pip install 'winnow[s3]'.",
            code="part_not_installed",
        ) from error
    place = Place.of(settings.storage_url, endpoint=settings.s3_endpoint, region=settings.s3_region)
    return S3Storage(place, largest_bytes=settings.max_upload_bytes)
