"""What keys may be for. Apart from what checks them, so that the command line stays light."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """What a key may do; docs/access.md says which calls that is. `admin` implies the others.

    Except `operator`, which is about all tenants: only keys of the tenant `default` have it, its admins' among them.
    """

    UPLOAD = "upload"
    JOBS = "jobs"
    REVIEW = "review"
    PREDICT = "predict"
    ADMIN = "admin"
    OPERATOR = "operator"
