"""Tenants, and whose everything is; uploads that can be resumed, and that are kept once"""

import math
import secrets
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
NAMING = {"uq": "%(table_name)s_%(column_0_name)s_key", "pk": "%(table_name)s_pkey"}  # as PostgreSQL names them itself
NAMED = {
    "dataset_versions": ["name", "version"],
    "model_versions": ["name", "version"],
    "model_aliases": ["name", "alias"],
}


def upgrade() -> None:
    _tenants()
    _owned()
    _versions()
    _uploads()
    _measure()
    _blobs_of_before()


def downgrade() -> None:
    """Before this revision there is one tenant: nothing of any other may come to be his."""
    for table in ("upload_parts", "uploads", "blob_uses", "blobs"):
        op.drop_table(table)
    _forget_others()
    with op.batch_alter_table("jobs", naming_convention=NAMING) as jobs:
        for index in ("ix_jobs_tenant_id", "ix_jobs_tenant_state"):
            jobs.drop_index(index)
        jobs.drop_constraint("uq_jobs_tenant_idempotency_key", type_="unique")
        jobs.drop_column("tenant")
        jobs.create_unique_constraint("jobs_idempotency_key_key", ["idempotency_key"])
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_index("ix_api_keys_tenant_id")
        keys.drop_column("tenant")
        keys.drop_column("requests_per_second")
    op.drop_index("ix_audit_log_tenant_seq", "audit_log")
    op.drop_column("audit_log", "tenant")
    for table, key in NAMED.items():
        with op.batch_alter_table(table, naming_convention=NAMING) as named:
            named.drop_constraint(f"{table}_pkey", type_="primary")
            named.create_primary_key(f"{table}_pkey", key)
            named.drop_column("tenant")
            if table != "model_aliases":
                named.drop_column("size_bytes")
            if table == "dataset_versions":
                named.drop_column("deleted_at")
    op.drop_table("tenants")


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant", sa.String(length=32), nullable=False, server_default="default")


def _tenants() -> None:
    tenants = op.create_table(
        "tenants",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("quotas", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.bulk_insert(tenants, [{"name": "default", "created_at": datetime.now(UTC), "quotas": {}}])


def _owned() -> None:
    op.add_column("api_keys", _tenant())
    op.add_column("api_keys", sa.Column("requests_per_second", sa.Integer(), nullable=True))
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant", "id"])
    op.add_column("audit_log", sa.Column("tenant", sa.String(length=32), nullable=True))
    op.create_index("ix_audit_log_tenant_seq", "audit_log", ["tenant", "seq"])
    with op.batch_alter_table("jobs", naming_convention=NAMING) as jobs:
        jobs.add_column(_tenant())
        jobs.drop_constraint("jobs_idempotency_key_key", type_="unique")
        jobs.create_unique_constraint("uq_jobs_tenant_idempotency_key", ["tenant", "idempotency_key"])
        jobs.create_index("ix_jobs_tenant_id", ["tenant", "id"])
        jobs.create_index("ix_jobs_tenant_state", ["tenant", "state"])


def _versions() -> None:
    for table, key in NAMED.items():
        with op.batch_alter_table(table, naming_convention=NAMING) as named:
            named.add_column(_tenant())
            named.drop_constraint(f"{table}_pkey", type_="primary")
            named.create_primary_key(f"{table}_pkey", ["tenant", *key])
            if table != "model_aliases":
                named.add_column(sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default="0"))
            if table == "dataset_versions":
                named.add_column(sa.Column("deleted_at", MOMENT, nullable=True))


def _uploads() -> None:
    op.create_table(
        "blobs",
        _tenant(),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant", "sha256", name="uq_blobs_tenant_sha256"),
    )
    op.create_table(
        "blob_uses",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("blob_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"]),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("ix_blob_uses_blob_id", "blob_uses", ["blob_id"])
    op.create_table(
        "uploads",
        _tenant(),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("told", sa.Text(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("writer", sa.String(length=32), nullable=True),
        sa.Column("writer_until", MOMENT, nullable=True),
        sa.Column("actor_id", sa.String(length=32), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("job_id", sa.String(length=32), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    for name, columns in (("state", ["state"]), ("expires_at", ["expires_at"]), ("tenant_id", ["tenant", "id"])):
        op.create_index(f"ix_uploads_{name}", "uploads", columns)
    op.create_table(
        "upload_parts",
        sa.Column("upload_id", sa.String(length=32), nullable=False),
        sa.Column("begin", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"]),
        sa.PrimaryKeyConstraint("upload_id", "begin"),
    )


def _measure() -> None:
    """How many bytes the images of each version take, decoded."""
    versions = sa.table(
        "dataset_versions",
        *(sa.column(name) for name in ("name", "version", "num_samples", "size_bytes")),
        sa.column("image_shape", sa.JSON),
    )
    bind = op.get_bind()
    for row in bind.execute(sa.select(versions)).all():
        here = sa.and_(versions.c.name == row.name, versions.c.version == row.version)
        size = row.num_samples * math.prod(row.image_shape)
        bind.execute(sa.update(versions).where(here).values(size_bytes=size))


def _blobs_of_before() -> None:
    """The uploads there are; of two with the same bytes the first is the blob, and the other stays beside it."""
    jobs = sa.table(
        "jobs", sa.column("id"), sa.column("type"), sa.column("inputs", sa.JSON), sa.column("created_at", MOMENT)
    )
    query = sa.select(jobs.c.id, jobs.c.inputs, jobs.c.created_at).where(jobs.c.type == "ingest").order_by(jobs.c.id)
    blobs: dict[str, dict[str, Any]] = {}
    uses = []
    for job_id, inputs, created_at in op.get_bind().execute(query).all():
        if not {"upload", "sha256", "bytes"} <= inputs.keys():
            continue
        known = {"sha256": inputs["sha256"], "size_bytes": inputs["bytes"], "key": inputs["upload"]}
        blob = blobs.setdefault(inputs["sha256"], {"id": secrets.token_hex(16), **known, "created_at": created_at})
        if blob["key"] == inputs["upload"]:
            uses.append({"job_id": job_id, "blob_id": blob["id"]})
    columns = {"id": sa.String, "sha256": sa.String, "size_bytes": sa.BigInteger, "key": sa.String}
    table = sa.table(
        "blobs", *(sa.column(name, kind) for name, kind in columns.items()), sa.column("created_at", MOMENT)
    )
    op.bulk_insert(table, list(blobs.values()))
    op.bulk_insert(sa.table("blob_uses", sa.column("job_id"), sa.column("blob_id")), uses)


def _forget_others() -> None:
    jobs = sa.table("jobs", *(sa.column(name) for name in ("id", "parent_id", "tenant")))
    others = sa.select(jobs.c.id).where(jobs.c.tenant != "default")
    for name in ("job_events", "overrides"):
        table = sa.table(name, sa.column("job_id"))
        op.execute(sa.delete(table).where(table.c.job_id.in_(others)))
    for name in (*NAMED, "api_keys"):
        table = sa.table(name, sa.column("tenant"))
        op.execute(sa.delete(table).where(table.c.tenant != "default"))
    op.execute(sa.update(jobs).where(jobs.c.tenant != "default").values(parent_id=None))
    op.execute(sa.delete(jobs).where(jobs.c.tenant != "default"))
