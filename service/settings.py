"""One frozen Settings, read from the environment (`WINNOW_…`) at the entry points only."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


class Settings(BaseSettings):
    """Every knob of a deployment; hyperparameters are not here but in `models.specs`."""

    model_config = SettingsConfigDict(env_prefix="WINNOW_", frozen=True, extra="ignore")

    home: Path = Field(
        Path.home() / ".winnow", description="folder of the embedded stack: database, storage, logs, keys"
    )
    host: str = Field("127.0.0.1", description="address the gateway binds to")
    port: int = Field(8080, ge=0, le=65535, description="port the gateway binds to")
    database_url: str = Field(
        "", description="postgresql://user:password@host/name, or any SQLAlchemy URL; default: SQLite in home"
    )
    redis_url: str = Field("", description="broker URL as Celery reads it; the embedded stack starts its own")
    storage: Path = Field(Path(), description="folder of uploads, shards, bundles and reports; default: home/storage")
    storage_url: str = Field("", description="s3://bucket or s3://bucket/prefix, instead of a folder")
    s3_endpoint: str = Field(
        "", description="URL of the S3 service; default: AWS's own. Credentials: AWS_ACCESS_KEY_ID…"
    )
    s3_region: str = Field("", description="region of the bucket; default: AWS_REGION")
    forwarded_allow_ips: str = Field(
        "127.0.0.1",
        description="proxies whose X-Forwarded-Proto and X-Forwarded-For are believed: addresses, networks, or *",
    )
    encoders: Path = Field(
        Path(), description="folder of NAME.onnx, pretrained encoders that jobs may name; default: home/encoders"
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    max_upload_bytes: int = Field(20 * 1024 * MIB, gt=0, description="largest upload accepted")
    upload_hours: float = Field(24.0, gt=0, description="a resumable upload left alone for this long is deleted")
    max_json_bytes: int = Field(32 * MIB, gt=0, description="largest JSON body, but for predictions")
    requests_per_second: int | None = Field(
        None, ge=1, description="requests a second of one key at one gateway; default: no limit"
    )
    quota_bytes: int | None = Field(None, ge=0, description="bytes that a tenant may store; default: no limit")
    quota_images: int | None = Field(None, ge=0, description="images in all versions of a tenant; default: no limit")
    quota_queued_jobs: int | None = Field(None, ge=0, description="jobs of a tenant that wait; default: no limit")
    quota_running_jobs: int | None = Field(
        None, ge=1, description="jobs of a tenant at work at once; more wait; default: no limit"
    )

    max_image_pixels: int = Field(40_000_000, gt=0, description="largest image decoded, in pixels")
    max_image_bytes: int = Field(64 * MIB, gt=0, description="largest single image file inside an upload")
    max_images: int = Field(5_000_000, gt=0, description="most images in one data set version")

    decoding_processes: int | None = Field(
        None,
        ge=0,
        le=64,
        description="processes that decode an upload's images; default: one a core; 0: the worker itself",
    )

    lease_seconds: float = Field(8.0, gt=0, description="a worker silent for this long loses its job to another")
    heartbeat_seconds: float = Field(
        1.0, gt=0, description="how often a worker renews its lease and looks for a cancel"
    )
    checkpoint_seconds: float = Field(
        60.0, gt=0, description="how often a fit keeps its state within an epoch, for when its worker is lost"
    )
    step_images: int = Field(
        8192,
        ge=1,
        description="images in a step of scoring; a set of more than twice as many is scored by all free workers",
    )
    training_processes: int | None = Field(
        None, ge=1, le=64, description="processes that fit a distillation together; default: one a CUDA device"
    )
    reap_seconds: float = Field(1.0, gt=0, description="how often a worker looks for lost and unclaimed jobs")
    worker_queues: str = Field(
        "cpu,gpu", pattern="^(cpu|gpu|cpu,gpu|gpu,cpu)$", description="jobs a worker takes: cpu, gpu, or both"
    )
    gpu_locks: Path = Field(
        Path(), description="folder that the workers of a machine share, so that each takes a GPU; default: all see all"
    )
    worker_metrics_port: int = Field(0, ge=0, le=65535, description="port of a worker's own metrics; 0: none")
    alive_file: Path | None = Field(None, description="a file that a worker touches in every round, for health checks")
    start_patience_seconds: float = Field(
        60.0, ge=0, description="how long a gateway that starts waits for its database"
    )
    keep_failed_days: float = Field(30.0, ge=0, description="what winnow gc keeps of uploads that became no version")
    keep_unreferenced_hours: float = Field(
        24.0, ge=1, description="age at which winnow gc takes what nothing refers to for left behind"
    )
    max_attempts: int = Field(3, ge=1, description="attempts after which a job that kills its worker fails")

    most_listeners: int = Field(1000, ge=1, description="streams of job events open at once; more get 503")
    stream_heartbeat_seconds: float = Field(
        15.0, gt=0, description="how often a silent stream of job events shows that it lives"
    )

    webhooks_allow_private: bool = Field(
        False, description="let webhooks lead to private addresses and over http; whoever makes one reaches those"
    )
    webhook_timeout_seconds: float = Field(15.0, gt=0, description="how long a webhook's receiver may take")

    gateway_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that answer inference at the gateway's port; above 1 on Linux only",
    )
    serving_threads: int = Field(2, ge=1, le=256, description="ONNX calls computed at once, each on one core")
    require_cuda: bool = Field(False, description="refuse to serve on the CPU")
    tensorrt: bool = Field(False, description="serve by TensorRT where ONNX Runtime has it; builds engines at loading")
    loaded_models: int = Field(16, ge=1, description="model versions kept in memory, at most")
    loaded_bytes: int = Field(2048 * MIB, gt=0, description="memory that loaded model versions may take, estimated")
    predict_batch: int = Field(64, ge=1, description="images in one ONNX call, at most")
    predict_delay_ms: float = Field(
        0.0, ge=0, le=1000, description="how long a call that is not full waits for more while others are computed"
    )
    predict_timeout_ms: float = Field(10_000.0, gt=0, description="longest wait for a call; requests over it get 503")
    predict_queue: int = Field(64, ge=1, description="prediction requests waiting, at most; more get 503")
    max_predict_bytes: int = Field(64 * MIB, gt=0, description="largest body of a prediction request")
    max_predict_images: int = Field(4096, ge=1, description="most images in a prediction request")

    drift_alarm_rate: float = Field(
        0.01, gt=0, lt=1, description="the chance that clean traffic ever raises a version's drift alarm"
    )

    capture_share: float = Field(
        0.0, ge=0, le=1, description="share of the images that models abstain on that is kept for review; 0: none"
    )
    capture_per_minute: int = Field(60, ge=1, description="images captured in a minute by one gateway, at most")
    capture_bytes: int = Field(256 * MIB, gt=0, description="captured images of a tenant, at most; the oldest go first")
    capture_days: float = Field(30.0, gt=0, description="for how long a captured image is kept, at most")

    @field_validator("gateway_processes")
    @classmethod
    def _several_need_linux(cls, count: int) -> int:
        if count > 1 and sys.platform != "linux":
            raise ValueError("several processes at one port need Linux: take 1, and several gateways behind a proxy")
        return count

    @classmethod
    def from_env(cls) -> Self:
        """Settings from the environment, with the defaults that depend on `home` filled in."""
        return cls().resolved()

    def resolved(self) -> Self:
        home = self.home.expanduser().resolve()
        return self.model_copy(
            update={
                "home": home,
                "database_url": _driven(self.database_url) or f"sqlite:///{home / 'winnow.db'}",
                "encoders": home / "encoders" if self.encoders == Path() else self.encoders.expanduser().resolve(),
                "storage": home / "storage" if self.storage == Path() else self.storage.expanduser().resolve(),
            }
        )


def _driven(url: str) -> str:
    """PostgreSQL's own forms of a URL name no driver; ours is psycopg."""
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
