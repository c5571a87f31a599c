"""The encoder of a job: the same file for every attempt and every worker, and words where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.autoencoders.residual import ResidualDenoiser
from models.detectors.encoder_loss import EncoderLoss
from models.filtering import CrossFilter, Filter
from models.panel.classifier import PanelClassifier
from models.panel.detectors import Encoded
from models.panel.panel import Panel
from models.panel.purification import CrossFitted, Purified
from models.seeding import seeded
from service.errors import InvalidParams
from service.settings import Settings
from service.storage import LocalStorage
from tests.encoders import line_encoder
from worker.context import StorageCheckpoints
from worker.encoders import Eye
from worker.examiner import Examiner, Listing
from worker.examiner_file import pack_examiner, unpack_examiner

SHAPE, LAYERS = (12, 12, 1), {"width": 4, "depth": 2, "eps_linf": 0.05}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "lines.onnx").write_bytes(line_encoder())
    return Settings(encoders=tmp_path)


@pytest.fixture
def checkpoints(tmp_path: Path) -> StorageCheckpoints:
    return StorageCheckpoints(LocalStorage(tmp_path / "storage"), "checkpoints/job", every_seconds=60)


def test_a_later_attempt_opens_the_file_of_the_first_or_says_that_it_is_another(
    settings: Settings, checkpoints: StorageCheckpoints
) -> None:
    first = Eye.of_job(settings, checkpoints, "lines", SHAPE).facts
    assert Eye.of_job(settings, checkpoints, "lines", SHAPE).facts == first
    (settings.encoders / "lines.onnx").write_bytes(line_encoder(channels=3))
    with pytest.raises(InvalidParams, match="not the file that this job began with") as caught:
        Eye.of_job(settings, checkpoints, "lines", SHAPE)
    assert caught.value.code == "encoder_changed"
    (settings.encoders / "lines.onnx").write_bytes(line_encoder())
    assert Eye.of_job(settings, checkpoints, "lines", SHAPE).facts == first


def test_one_that_cannot_look_at_the_images_is_refused_before_anything_else(
    settings: Settings, checkpoints: StorageCheckpoints
) -> None:
    (settings.encoders / "noughts.onnx").write_bytes(line_encoder(divide_by=0.0))
    with pytest.raises(InvalidParams, match="not finite") as caught:
        Eye.of_job(settings, checkpoints, "noughts", SHAPE)
    assert caught.value.code == "encoder_unfit"


def test_a_file_that_cannot_be_read_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read anything, so that a mode would show nothing."""

    def refused(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(InvalidParams, match="Permission denied") as caught:
        Eye(settings, "lines")
    assert caught.value.code == "encoder_unfit"


def examiner(eye: Eye) -> Examiner:
    """Of networks that learnt nothing, and an encoder's classifiers of drawn features."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(2, 50, 4)).astype(np.float32), rng.integers(0, 3, (2, 50))
    fitted = tuple(EncoderLoss.fit(features[fold], labels[fold], num_classes=3) for fold in (0, 1))
    with seeded(0):
        networks = CrossFitted(
            tuple(PanelClassifier(image_shape=SHAPE, num_classes=3, width=4).eval() for _ in range(2))
        )
        own = Filter(ResidualDenoiser(channels=1, **LAYERS).eval(), SHAPE, LAYERS)
    purified = Purified(networks, networks, np.empty(0, np.bool_), ())
    panel = Panel(("encoder_loss",), purified, (Encoded(eye.encode, fitted),), 3)
    return Examiner(CrossFilter((own,)), panel, eye.facts)


def test_what_another_worker_is_given_scores_as_the_first_does(settings: Settings) -> None:
    given, count = examiner(Eye(settings, "lines")), 40
    images = np.random.default_rng(1).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    listing = Listing(np.arange(count) % 3, np.arange(count) % 2, np.arange(count))
    again, listed = unpack_examiner(
        pack_examiner(given, listing), lambda facts: Eye(settings, facts["name"], sha256=facts["sha256"]).encode
    )
    here, there = (each.score(images, listed.labels, np.zeros(count, np.int64), listed.rows) for each in (given, again))
    assert (here == there).all() and len(np.unique(here[:, 1])) > 30
    assert again.encoder == given.encoder
