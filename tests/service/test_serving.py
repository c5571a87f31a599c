"""Predictions: their numbers, null and its reasons, α's promises, and the same answer in any company."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
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
    DIMMED,
    MC,
    bundle_files,
    calibration,
    clean_images,
    grey_images,
    probabilities_by_hand,
    scores_by_hand,
    served_onnx,
    striped_images,
)

from models.abstention import calibrate_abstention, decide_on, uncertainty, uncertainty_of
from models.calibration import conformal_p_values, realised_rate_bounds
from service.registry.bundle import CALIBRATION, CARD, SERVED, load, publish
from service.registry.calibration import McDropout, ServingCalibration
from service.serving.answers import Answers, Options, Prediction, Timing
from service.serving.batches import probe_images
from service.serving.errors import (
    AlphaNotPromised,
    AlphaOutOfRange,
    CannotReform,
    ModelFault,
    PassesOutOfRange,
)
from service.serving.served import Served
from service.serving.sessions import CPU, Plan, Runtime
from service.storage import LocalStorage

CPU_PLAN = Plan(((CPU, {}),), strict=False)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def served_of(storage: LocalStorage, files: dict[str, bytes], *, batch: int = 64) -> Served:
    digests = publish(storage, "models/tiny/job-1", files)
    bundle = load(storage, "models/tiny/job-1", digests)
    return Served(bundle, Runtime(CPU_PLAN), name="tiny", version=1, batch=batch)


@pytest.fixture
def served(storage: LocalStorage) -> Served:
    return served_of(storage, bundle_files())


def answered(served: Served, images: NDArray[np.uint8], **options: Any) -> Answers:
    chosen = Options(**options)
    calling = served.make_calling(served.how(chosen))
    return served.answers(calling, calling.judge(images), chosen.alpha, Timing(0, 0, len(images)))


def predicted(served: Served, images: NDArray[np.uint8], **options: Any) -> list[Prediction]:
    return answered(served, images, **options).predictions()


def told(prediction: Prediction) -> bytes:
    """Everything that is said of an image, to the last bit."""
    return orjson.dumps(prediction, option=orjson.OPT_SERIALIZE_NUMPY)


def test_numbers_are_those_worked_out_by_hand(served: Served) -> None:
    images, _ = clean_images(70, seed=2)
    abstention = calibration().abstention
    wanted = uncertainty(probabilities_by_hand(images), abstention.profiles)
    found = predicted(served, images, alpha=ALPHA)
    np.testing.assert_allclose([p.probabilities for p in found], wanted.mean_probabilities, atol=1e-5)
    np.testing.assert_allclose([p.uncertainty.entropy for p in found], wanted.entropy, atol=1e-5)
    np.testing.assert_allclose([p.uncertainty.kl for p in found], wanted.kl, atol=1e-5)
    information = [p.uncertainty.mutual_information for p in found]
    np.testing.assert_allclose(information, wanted.mutual_information, atol=1e-5)
    assert min(information) > 0, "dropout is dead: its passes do not differ"


def test_clean_images_get_their_label_and_null_no_more_often_than_alpha_allows(served: Served) -> None:
    images, labels = clean_images(2000, seed=4)
    found = predicted(served, images, alpha=ALPHA)
    low, high = realised_rate_bounds(ALPHA, calibration().abstention.n, len(images), confidence=0.999)
    assert low <= np.mean([p.abstained for p in found]) <= high
    answered = [(p, label) for p, label in zip(found, labels, strict=True) if not p.abstained]
    assert all(p.index == label and p.label == CLASSES[label] and p.reason is None for p, label in answered)


@pytest.mark.parametrize(
    ("images", "reason"), [(grey_images(20), "uncertain"), (striped_images(20, seed=6), "perturbed")]
)
def test_null_says_why(served: Served, images: NDArray[np.uint8], reason: str) -> None:
    for prediction in predicted(served, images, alpha=ALPHA):
        assert (prediction.label, prediction.index, prediction.abstained) == (None, None, True)
        assert prediction.reason == reason
        assert prediction.p_value <= ALPHA
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_without_a_detector_only_uncertainty_refuses(storage: LocalStorage) -> None:
    served = served_of(storage, bundle_files(detector=False))
    assert {p.reason for p in predicted(served, grey_images(5), alpha=ALPHA)} == {"uncertain"}
    striped = striped_images(50, seed=6)
    abstention = calibration(detector=False).abstention
    kl = uncertainty(probabilities_by_hand(striped), abstention.profiles).kl
    wanted = conformal_p_values(kl, abstention.kl_scores)
    found = [p.p_value for p in predicted(served, striped, alpha=ALPHA)]
    np.testing.assert_allclose(found, wanted, atol=2 / abstention.n)
    assert scores_by_hand(striped).min() > scores_by_hand(clean_images(500, 1)[0]).max(), (
        "a detector would have seen it"
    )


def test_alpha_moves_the_line(served: Served) -> None:
    images, _ = clean_images(1000, seed=8)
    shares = [np.mean([p.abstained for p in predicted(served, images, alpha=alpha)]) for alpha in (0.01, 0.1, 0.5)]
    assert shares[0] < shares[1] < shares[2]


def test_alpha_below_what_calibration_can_promise_is_refused_with_the_smallest(served: Served) -> None:
    n = calibration().abstention.n
    assert n <= CALIBRATION_IMAGES
    with pytest.raises(AlphaNotPromised) as refusal:
        predicted(served, grey_images(1), alpha=0.9 / (n + 1))
    smallest = refusal.value.details["smallest_alpha"]
    assert smallest == pytest.approx(1 / (n + 1))
    assert str(smallest) in refusal.value.message
    assert predicted(served, grey_images(1), alpha=float(str(smallest)))[0].p_value > 0, "what is offered is accepted"


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_alpha_that_is_no_share_is_refused(served: Served, alpha: float) -> None:
    with pytest.raises(AlphaOutOfRange):
        predicted(served, grey_images(1), alpha=alpha)


# Batch invariance, on the networks that are really served


@functools.cache
def real_files() -> dict[str, bytes]:
    """An untrained student and filter as the worker bundles them; calibrated on noise."""
    from models.abstention import Reason
    from models.autoencoders.residual import ResidualDenoiser
    from models.classifiers import build_classifier
    from models.filtering import Filter
    from models.seeding import seeded
    from models.specs import ClassifierSpec
    from models.uncertainty import mc_probabilities
    from worker.bundling import graphs
    from worker.material import Material

    shape = (32, 32, 3)
    layers = {"width": 8, "depth": 3, "eps_linf": 0.05}
    with seeded(0):
        own = Filter(ResidualDenoiser(channels=3, **layers).eval(), shape, layers)
    student = build_classifier(ClassifierSpec(width=8, hidden=32), num_classes=5, image_shape=shape, seed=1).eval()
    mc = McDropout(passes=8, dropout=0.5, seed=2, feature_dim=32)
    images = probe_images(128, shape)
    probabilities = mc_probabilities(student, images, mc.masks())
    labels = probabilities.mean(0).argmax(1)
    classes = [str(c) for c in range(5)]
    none: dict[Reason, NDArray[np.float32]] = {}
    abstention = calibrate_abstention(probabilities, labels, own.score(images), seed=mc.seed, student_scores=none)
    files, difference = graphs(
        student,
        Material(images, labels, images, labels, len(labels), np.arange(len(labels)), True, classes, shape, own, {}),
        mc.masks(),
    )
    assert difference < 1e-4
    card = {"classes": classes, "image_shape": list(shape)}
    return {**files, CALIBRATION: ServingCalibration(abstention, mc, 0.1).to_bytes(), CARD: orjson.dumps(card)}


@pytest.mark.parametrize(
    "options",
    [pytest.param({"alpha": 0.1}, marks=pytest.mark.slow), {"reform": True}, {"mc_passes": 5, "seed": 9}],
    ids=str,
)
def test_an_image_gets_the_same_answer_alone_and_in_any_company(storage: LocalStorage, options: dict[str, Any]) -> None:
    served = served_of(storage, real_files(), batch=32)
    rng = np.random.default_rng(11)
    image = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    alone = told(predicted(served, image, **options)[0])
    for _ in range(8):  # 50 over HTTP: benchmarks/serving.py
        company = rng.integers(0, 256, (int(rng.integers(0, 40)), 32, 32, 3), dtype=np.uint8)
        place = int(rng.integers(0, len(company) + 1))
        batch = np.concatenate([company[:place], image, company[place:]])
        assert told(predicted(served, batch, **options)[place]) == alone


def test_what_is_served_decides_as_the_mathematics_does(storage: LocalStorage) -> None:
    served = served_of(storage, real_files())
    images = probe_images(60, (32, 32, 3))
    bundle = load(storage, "models/tiny/job-1", publish(storage, "models/tiny/job-1", real_files()))
    network = Runtime(CPU_PLAN).open(
        real_files()[SERVED], name=SERVED, inputs=["images", "masks"], outputs=["mean_probabilities"]
    )
    names = ["mean_probabilities", "class_entropy", "scores"]
    inputs = {"images": images, "masks": bundle.calibration.mc.masks()}
    mean, entropy, scores = network.run(names, inputs)
    abstention = bundle.calibration.abstention
    wanted = decide_on(uncertainty_of(mean, entropy.sum(axis=1), abstention.profiles), scores, abstention, alpha=0.1)
    found = answered(served, images, alpha=0.1)
    np.testing.assert_allclose(found.p_value, wanted.p_value, atol=2 / abstention.n)
    assert (found.abstained == wanted.abstained).mean() > 0.95
    assert found.abstained.any()
    same = found.abstained & wanted.abstained
    assert [r for r, s in zip(found.reason, same, strict=True) if s] == [
        r for r, s in zip(wanted.reason, same, strict=True) if s
    ]


def test_sizes_are_padded_to_where_they_must_be(storage: LocalStorage) -> None:
    """As on a device whose kernels agree at one size only."""
    served = served_of(storage, bundle_files())
    images, _ = clean_images(37, seed=3)
    calling = served.make_calling(served.how(Options()))
    at_16, at_1 = (replace(calling, sizes=(size,)).judge(images) for size in (16, 1))
    assert len(at_16.index) == 37
    np.testing.assert_allclose(at_16.probabilities, at_1.probabilities, atol=1e-6)


# What a request may choose


def test_other_masks_are_calibrated_for_themselves(served: Served) -> None:
    """With the bundle's own calibration few and other passes would refuse more or fewer clean images than α says."""
    images, _ = clean_images(2000, seed=4)
    n = calibration().abstention.n
    low, high = realised_rate_bounds(ALPHA, n, len(images), confidence=0.999)
    for options in ({"mc_passes": 2, "seed": 1}, {"mc_passes": 64, "seed": 8}, {"reform": True}):
        found = answered(served, images, **options)
        assert low <= found.abstained.mean() <= high, options
    own, again = answered(served, images), answered(served, images, mc_passes=MC.passes, seed=MC.seed)
    np.testing.assert_array_equal(own.p_value, again.p_value)
    other = answered(served, images, seed=MC.seed + 1)
    assert (other.probabilities != own.probabilities).any()


def test_reform_answers_for_the_reconstruction(served: Served) -> None:
    """The tiny reformer dims what is brighter than DIMMED: a bright colour is then less sure, and still itself."""
    images, labels = clean_images(200, seed=4)
    plain, reformed = answered(served, images), answered(served, images, reform=True)
    wanted = probabilities_by_hand(np.minimum(images, DIMMED)).mean(axis=0)
    np.testing.assert_allclose(reformed.probabilities, wanted, atol=1e-5)
    assert np.abs(reformed.probabilities - plain.probabilities).max() > 0.01
    assert (reformed.index == labels).all()


def test_what_cannot_be_chosen_is_refused(served: Served, tmp_path: Path) -> None:
    without = served_of(LocalStorage(tmp_path / "other"), bundle_files(detector=False))
    with pytest.raises(CannotReform, match="without a filter"):
        without.how(Options(reform=True))
    for passes in (1, 0, -3, 257):
        with pytest.raises(PassesOutOfRange, match="2 to 256"):
            served.how(Options(mc_passes=passes))


# Networks that are as published and wrong all the same


def with_weights(model: bytes, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> bytes:
    graph = onnx.load_from_string(model)
    for tensor in graph.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return bytes(graph.SerializeToString())


def test_a_network_of_nonsense_is_not_served(storage: LocalStorage) -> None:
    broken = with_weights(served_onnx(), "to_logits", lambda weights: weights * np.nan)
    with pytest.raises(ModelFault, match=r"served\.onnx answers its parity sample otherwise"):
        served_of(storage, {**bundle_files(), SERVED: broken})


def test_a_network_that_computes_something_else_than_when_it_was_exported_is_not_served(storage: LocalStorage) -> None:
    """Each of its files is as published, and it answers probabilities: only the sample tells."""
    other = with_weights(served_onnx(), "to_logits", lambda weights: weights[:, ::-1])
    with pytest.raises(ModelFault, match=r"parity sample otherwise than when it was exported: mean_probabilities"):
        served_of(storage, {**bundle_files(), SERVED: other})
    dull = with_weights(served_onnx(), "of_image", lambda axes: axes)
    assert served_of(storage, {**bundle_files(), SERVED: dull}).reference == "tiny@1"


def test_one_image_of_nonsense_fails_alone(served: Served) -> None:
    calling = served.make_calling(served.how(Options()))
    judged = calling.judge(clean_images(3, seed=1)[0])
    spoilt = replace(judged, finite=np.array([True, False, True]))
    with pytest.raises(ModelFault, match="not finite for image 1") as refusal:
        served.answers(calling, spoilt, None, Timing(0, 0, 3))
    assert refusal.value.details["image"] == 1
    assert len(served.answers(calling, spoilt.rows(slice(2, 3)), None, Timing(0, 0, 3))) == 1


def test_a_network_with_other_classes_is_not_served(storage: LocalStorage) -> None:
    wider = with_weights(served_onnx(), "to_logits", lambda weights: np.hstack([weights, weights]))
    with pytest.raises(ModelFault, match=r"served\.onnx (answers|cannot be run|is not a graph)"):
        served_of(storage, {**bundle_files(), SERVED: wider})


def test_masks_of_another_network_are_not_served(storage: LocalStorage) -> None:
    other = McDropout(passes=4, dropout=0.5, seed=0, feature_dim=MC.feature_dim + 1)
    document = ServingCalibration(calibration().abstention, other, ALPHA).to_bytes()
    with pytest.raises(ModelFault, match=r"served\.onnx cannot be run"):
        served_of(storage, {**bundle_files(), CALIBRATION: document})
