"""Predictions: their numbers, null and its reasons, α's promises, and the same answer in any company."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tiny_model import (
    ALPHA,
    CALIBRATION_IMAGES,
    CLASSES,
    MC,
    bundle_files,
    calibration,
    clean_images,
    grey_images,
    probabilities_by_hand,
    scores_by_hand,
    striped_images,
    student_onnx,
)

from models.abstention import calibrate_abstention, uncertainty
from models.calibration import conformal_p_values, realised_rate_bounds
from service.registry.bundle import CALIBRATION, CARD, DETECTOR, STUDENT, load, publish
from service.registry.calibration import McDropout, ServingCalibration
from service.serving.answers import Prediction
from service.serving.batches import probe_images
from service.serving.errors import (
    AlphaNotPromised,
    AlphaOutOfRange,
    ModelFault,
)
from service.serving.predict import Predictor
from service.serving.sessions import CPU, Plan, Runtime
from service.storage import LocalStorage

CPU_PLAN = Plan(((CPU, {}),), strict=False)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def predictor_of(storage: LocalStorage, files: dict[str, bytes], *, batch: int = 64) -> Predictor:
    digests = publish(storage, "models/tiny/job-1", files)
    return Predictor(
        load(storage, "models/tiny/job-1", digests), Runtime(CPU_PLAN, threads=1), name="tiny", version=1, batch=batch
    )


@pytest.fixture
def predictor(storage: LocalStorage) -> Predictor:
    return predictor_of(storage, bundle_files())


def predicted(predictor: Predictor, images: NDArray[np.uint8], *, alpha: float) -> list[Prediction]:
    return predictor.predict(images, alpha=alpha).predictions()


def told(prediction: Prediction) -> bytes:
    """Everything that is said of an image, to the last bit."""
    return orjson.dumps(prediction, option=orjson.OPT_SERIALIZE_NUMPY)


def test_numbers_are_those_worked_out_by_hand(predictor: Predictor) -> None:
    images, _ = clean_images(70, seed=2)
    abstention = calibration().abstention
    wanted = uncertainty(probabilities_by_hand(images), abstention.profiles)
    found = predicted(predictor, images, alpha=ALPHA)
    np.testing.assert_allclose([p.probabilities for p in found], wanted.mean_probabilities, atol=1e-5)
    np.testing.assert_allclose([p.uncertainty.entropy for p in found], wanted.entropy, atol=1e-5)
    np.testing.assert_allclose([p.uncertainty.kl for p in found], wanted.kl, atol=1e-5)
    information = [p.uncertainty.mutual_information for p in found]
    np.testing.assert_allclose(information, wanted.mutual_information, atol=1e-5)
    assert min(information) > 0, "dropout is dead: its passes do not differ"


def test_clean_images_get_their_label_and_null_no_more_often_than_alpha_allows(predictor: Predictor) -> None:
    images, labels = clean_images(2000, seed=4)
    found = predicted(predictor, images, alpha=ALPHA)
    low, high = realised_rate_bounds(ALPHA, calibration().abstention.n, len(images), confidence=0.999)
    assert low <= np.mean([p.abstained for p in found]) <= high
    answered = [(p, label) for p, label in zip(found, labels, strict=True) if not p.abstained]
    assert all(p.index == label and p.label == CLASSES[label] and p.reason is None for p, label in answered)


@pytest.mark.parametrize(
    ("images", "reason"), [(grey_images(20), "uncertain"), (striped_images(20, seed=6), "perturbed")]
)
def test_null_says_why(predictor: Predictor, images: NDArray[np.uint8], reason: str) -> None:
    for prediction in predicted(predictor, images, alpha=ALPHA):
        assert (prediction.label, prediction.index, prediction.abstained) == (None, None, True)
        assert prediction.reason == reason
        assert prediction.p_value <= ALPHA
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_without_a_detector_only_uncertainty_refuses(storage: LocalStorage) -> None:
    predictor = predictor_of(storage, bundle_files(detector=False))
    assert {p.reason for p in predicted(predictor, grey_images(5), alpha=ALPHA)} == {"uncertain"}
    striped = striped_images(50, seed=6)
    abstention = calibration(detector=False).abstention
    kl = uncertainty(probabilities_by_hand(striped), abstention.profiles).kl
    wanted = conformal_p_values(kl, abstention.kl_scores)
    found = [p.p_value for p in predicted(predictor, striped, alpha=ALPHA)]
    np.testing.assert_allclose(found, wanted, atol=2 / abstention.n)
    assert scores_by_hand(striped).min() > scores_by_hand(clean_images(500, 1)[0]).max(), (
        "a detector would have seen it"
    )


def test_alpha_moves_the_line(predictor: Predictor) -> None:
    images, _ = clean_images(1000, seed=8)
    shares = [np.mean([p.abstained for p in predicted(predictor, images, alpha=alpha)]) for alpha in (0.01, 0.1, 0.5)]
    assert shares[0] < shares[1] < shares[2]


def test_alpha_below_what_calibration_can_promise_is_refused_with_the_smallest(predictor: Predictor) -> None:
    n = calibration().abstention.n
    assert n <= CALIBRATION_IMAGES
    with pytest.raises(AlphaNotPromised) as refusal:
        predicted(predictor, grey_images(1), alpha=0.9 / (n + 1))
    smallest = refusal.value.details["smallest_alpha"]
    assert smallest == pytest.approx(1 / (n + 1))
    assert str(smallest) in refusal.value.message
    assert predicted(predictor, grey_images(1), alpha=float(str(smallest)))[0].p_value > 0, (
        "what is offered is accepted"
    )


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_alpha_that_is_no_share_is_refused(predictor: Predictor, alpha: float) -> None:
    with pytest.raises(AlphaOutOfRange):
        predicted(predictor, grey_images(1), alpha=alpha)


# Batch invariance, on the networks that are really served


@functools.cache
def real_files() -> dict[str, bytes]:
    """A classifier and a convolutional detector as the worker exports them, untrained; calibrated on noise."""
    import torch
    from torch import nn

    from models.classifiers import build_classifier
    from models.onnx_export import export_detector, export_student
    from models.specs import ClassifierSpec

    shape = (32, 32, 3)

    class Residue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            residue = self.layers(images.permute(0, 3, 1, 2) / 255)
            return (residue * residue).mean((1, 2, 3)), images.clone()

        def as_module(self) -> nn.Module:
            return self

    student = build_classifier(ClassifierSpec(width=8, hidden=32), num_classes=5, image_shape=shape, seed=1).eval()
    mc = McDropout(passes=8, dropout=0.5, seed=2, feature_dim=32)
    images = probe_images(128, shape)
    files = {STUDENT: export_student(student, shape), DETECTOR: export_detector(Residue(), shape)}
    runtime = Runtime(CPU_PLAN, threads=1)
    network = runtime.open(files[STUDENT], name=STUDENT, inputs=["images", "masks"], output="probabilities")
    detector = runtime.open(files[DETECTOR], name=DETECTOR, inputs=["images"], output="scores")
    probabilities = network.run("probabilities", {"images": images, "masks": mc.masks()})
    abstention = calibrate_abstention(
        probabilities, probabilities.mean(0).argmax(1), detector.run("scores", {"images": images}), seed=0
    )
    card = {"classes": [str(c) for c in range(5)], "image_shape": list(shape)}
    return {**files, CALIBRATION: ServingCalibration(abstention, mc, 0.1).to_bytes(), CARD: orjson.dumps(card)}


@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_gets_the_same_answer_alone_and_in_any_company(storage: LocalStorage, threads: int) -> None:
    digests = publish(storage, "models/real/job-1", real_files())
    bundle = load(storage, "models/real/job-1", digests)
    predictor = Predictor(bundle, Runtime(CPU_PLAN, threads=threads), name="real", version=1, batch=32)
    rng = np.random.default_rng(11)
    image = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    alone = told(predicted(predictor, image, alpha=0.1)[0])
    for _ in range(50):
        company = rng.integers(0, 256, (int(rng.integers(0, 80)), 32, 32, 3), dtype=np.uint8)
        place = int(rng.integers(0, len(company) + 1))
        batch = np.concatenate([company[:place], image, company[place:]])
        assert told(predicted(predictor, batch, alpha=0.1)[place]) == alone


def test_sizes_are_padded_to_where_they_must_be(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device whose kernels agree at one size only."""
    predictor = predictor_of(storage, bundle_files())
    monkeypatch.setattr(predictor, "sizes", (16,))
    images, _ = clean_images(37, seed=3)
    whole = predicted(predictor, images, alpha=ALPHA)
    assert len(whole) == 37
    monkeypatch.setattr(predictor, "sizes", (1,))
    np.testing.assert_allclose(
        [p.probabilities for p in whole],
        [p.probabilities for p in predicted(predictor, images, alpha=ALPHA)],
        atol=1e-6,
    )


# Networks that are as published and wrong all the same


def with_weights(model: bytes, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> bytes:
    graph = onnx.load_from_string(model)
    for tensor in graph.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return bytes(graph.SerializeToString())


def test_a_network_of_nonsense_is_not_served(storage: LocalStorage) -> None:
    broken = with_weights(student_onnx(), "to_logits", lambda weights: weights * np.nan)
    with pytest.raises(ModelFault, match=r"student\.onnx answers numbers that are not finite"):
        predictor_of(storage, {**bundle_files(), STUDENT: broken})


def test_a_network_with_other_classes_is_not_served(storage: LocalStorage) -> None:
    wider = with_weights(student_onnx(), "to_logits", lambda weights: np.hstack([weights, weights]))
    with pytest.raises(ModelFault, match=r"student\.onnx (answers with shape|cannot be run|is not a graph)"):
        predictor_of(storage, {**bundle_files(), STUDENT: wider})


def test_masks_of_another_network_are_not_served(storage: LocalStorage) -> None:
    other = McDropout(passes=4, dropout=0.5, seed=0, feature_dim=MC.feature_dim + 1)
    document = ServingCalibration(calibration().abstention, other, ALPHA).to_bytes()
    with pytest.raises(ModelFault, match=r"student\.onnx cannot be run"):
        predictor_of(storage, {**bundle_files(), CALIBRATION: document})
