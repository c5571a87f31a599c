"""The teacher is not served; its test accuracy is measured on its weights in the stack's storage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.classifiers import build_classifier
from models.specs import DistillSpec
from models.uncertainty import mc_probabilities
from service.db import Database
from service.references import parse_model_ref
from service.registry import repository as registry
from service.settings import Settings
from service.storage import LocalStorage
from worker.artifacts import load_network


def test_accuracy(home: Path, model: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    settings = Settings(home=home).resolved()
    database = Database.open(settings.database_url)
    with database.session() as session:
        row = registry.resolve(session, parse_model_ref(model))
    database.close()
    card = row.card
    spec = DistillSpec.model_validate(card["spec"])
    height, width, channels = card["image_shape"]
    teacher = build_classifier(
        spec.teacher, num_classes=len(card["classes"]), image_shape=(height, width, channels), seed=spec.seed
    )
    load_network(teacher, LocalStorage(settings.storage).read(f"{row.prefix}/teacher.safetensors"))
    teacher.eval()
    found = mc_probabilities(teacher, images, np.ones((1, teacher.feature_dim), np.float32))[0].argmax(1)
    classes = np.array([int(name) for name in card["classes"]])
    return float((classes[found] == labels).mean())
