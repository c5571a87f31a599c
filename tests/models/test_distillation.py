"""Distillation on handwritten digits: it learns, it can be stopped and resumed, and its losses are what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from models.classifiers import Classifier, build_classifier
from models.distillation import Distilled, distill, hard_label_loss, soft_label_loss, soft_labels
from models.images import Images, NotImages, to_float
from models.specs import ClassifierSpec, DistillSpec, FitSpec
from models.training import Forgetful, Silent, Stopped

SMALL = ClassifierSpec(width=8, hidden=64)
SPEC = DistillSpec(
    teacher=SMALL,
    student=SMALL,
    fit=FitSpec(epochs=3, batch_size=32, optimizer="adamw", peak_lr=4e-3, validation_share=0.1),
    seed=3,
)


@dataclass
class Shelf:
    """Checkpoints in memory."""

    kept: dict[str, bytes] = field(default_factory=dict)

    def load(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def save(self, name: str, data: bytes) -> None:
        self.kept[name] = data


@dataclass
class Recorder:
    """Watches every phase; stops one where it is told to."""

    stop_in: str = ""
    stop_at: float = 2.0
    phases: list[str] = field(default_factory=list)
    seen: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def __call__(self, phase: str) -> Recorder:
        self.phases.append(phase)
        return self

    def advance(self, done: int, total: int) -> None:
        self.seen.setdefault(self.phases[-1], []).append((done, total))
        if self.phases[-1] == self.stop_in and done / total >= self.stop_at:
            raise Stopped


@pytest.fixture(scope="module")
def digits() -> tuple[Images, npt.NDArray[np.int64]]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]
    return images[order], data.target[order].astype(np.int64)


def accuracy(model: Classifier, images: Images, labels: npt.NDArray[np.int64]) -> float:
    with torch.no_grad():
        return float((model(to_float(images)).argmax(dim=1).numpy() == labels).mean())


def test_teacher_and_student_learn_the_digits(digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    images, labels = digits
    watch = Recorder()
    done = distill(images[:900], labels[:900], SPEC, num_classes=10, watch_for=watch, checkpoints=Forgetful())
    assert watch.phases == ["teacher", "soft labels", "student"]
    assert all(steps[-1][0] == steps[-1][1] for steps in watch.seen.values())
    assert not done.teacher.training
    assert not done.student.training
    teacher, student = (accuracy(model, images[900:], labels[900:]) for model in (done.teacher, done.student))
    assert teacher > 0.93
    assert student > 0.93
    for losses in (done.teacher_losses, done.student_losses):
        assert len(losses.train_loss) == len(losses.validation_loss) == SPEC.fit.epochs
        assert losses.train_loss[-1] < losses.train_loss[0] / 3
    assert done.notes["teacher_agrees_with_label"] > 0.95
    assert set(done.notes["seconds"]) == {"teacher", "soft labels", "student"}


@pytest.mark.slow
def test_a_small_set_is_learned_with_the_default_fit(digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    images, labels = digits
    tiny = ClassifierSpec(width=4, hidden=32)
    spec = DistillSpec(teacher=tiny, student=tiny)
    done = distill(
        images[:200], labels[:200], spec, num_classes=10, watch_for=lambda _phase: Silent(), checkpoints=Forgetful()
    )
    assert accuracy(done.student, images[200:], labels[200:]) > 0.9


@pytest.fixture
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is given, not of at least thousands."""
    monkeypatch.setattr("models.distillation.distilling.SAMPLES_AN_EPOCH", 1)


def run(digits: tuple[Images, npt.NDArray[np.int64]], watch: Recorder, shelf: Shelf) -> Distilled:
    quick = SPEC.model_copy(update={"fit": SPEC.fit.model_copy(update={"epochs": 2, "batch_size": 64})})
    images, labels = digits
    return distill(images[:128], labels[:128], quick, num_classes=10, watch_for=watch, checkpoints=shelf)


@pytest.fixture
def straight(digits: tuple[Images, npt.NDArray[np.int64]], short_epochs: None) -> Distilled:
    return run(digits, Recorder(), Shelf())


@pytest.mark.parametrize(("phase", "at"), [("teacher", 0.5), ("soft labels", 0.0), ("student", 0.9)])
def test_stopped_and_resumed_ends_where_it_would_have_ended(
    digits: tuple[Images, npt.NDArray[np.int64]], straight: Distilled, phase: str, at: float
) -> None:
    shelf = Shelf()
    stopped = Recorder(stop_in=phase, stop_at=at)
    with pytest.raises(Stopped):
        run(digits, stopped, shelf)
    assert stopped.phases[-1] == phase
    resumed = run(digits, Recorder(), shelf)
    for name in ("teacher", "student"):
        want, got = getattr(straight, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(want[key], got[key]) for key in want)
    assert resumed.student_losses == straight.student_losses


@pytest.mark.usefixtures("short_epochs")
def test_another_seed_is_another_network(digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    images, labels = digits
    spec = SPEC.model_copy(update={"fit": SPEC.fit.model_copy(update={"epochs": 1, "batch_size": 256})})
    first, other = (
        distill(
            images[:96],
            labels[:96],
            spec.model_copy(update={"seed": seed}),
            num_classes=10,
            watch_for=lambda _phase: Silent(),
            checkpoints=Forgetful(),
        )
        for seed in (0, 1)
    )
    assert not torch.equal(first.student.out.weight, other.student.out.weight)
    assert not torch.equal(first.student.out.weight, first.teacher.out.weight)


@pytest.fixture
def network() -> Classifier:
    return build_classifier(SMALL, num_classes=4, image_shape=(8, 8, 1), seed=0).eval()


def test_soft_labels_are_the_teachers_softmax_at_temperature(network: Classifier) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    soft = soft_labels(network.train(), images, temperature=7.0, watch=Silent())
    assert network.training
    with torch.no_grad():
        expected = F.softmax(network.eval()(to_float(images)) / 7.0, dim=1)
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 5.0, 40.0])
def test_losses_are_the_papers_cross_entropies_up_to_scale(network: Classifier, temperature: float) -> None:
    x, rng = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.Generator()
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    soft = torch.softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    log_p = F.log_softmax(network(x) / temperature, dim=1)
    hard = hard_label_loss(temperature)(network, (x, y), rng)
    torch.testing.assert_close(hard, -temperature * log_p[torch.arange(6), y].mean())
    papernot = -(soft * log_p).sum(dim=1).mean()
    ours = soft_label_loss(temperature)(network, (x, soft), rng)
    weight = network.out.weight
    (want,), (got,) = (torch.autograd.grad(loss, weight, retain_graph=True) for loss in (papernot, ours))
    torch.testing.assert_close(got, temperature**2 * want, atol=1e-5, rtol=1e-4)
    met = F.softmax(network(x) / temperature, dim=1).detach()
    assert soft_label_loss(temperature)(network, (x, met), rng).item() == pytest.approx(0, abs=1e-4)


def test_the_temperature_does_not_change_the_size_of_the_gradient(network: Classifier) -> None:
    """A network that has learned nothing is pulled towards its labels as hard at T = 50 as at T = 1."""
    x, y = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(32, dtype=torch.int64)
    norms = []
    for temperature in (1.0, 50.0):
        loss = hard_label_loss(temperature)(network, (x, y), torch.Generator())
        (gradient,) = torch.autograd.grad(loss, network.out.bias)
        norms.append(float(gradient.norm()))
    assert math.isclose(norms[0], norms[1], rel_tol=0.3)


def test_labels_and_images_that_do_not_fit_are_refused(digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    images, labels = digits
    with pytest.raises(ValueError, match="under 5"):
        distill(images, labels, SPEC, num_classes=5, watch_for=Recorder(), checkpoints=Forgetful())
    with pytest.raises(ValueError, match="labels"):
        distill(images, labels[:5], SPEC, num_classes=10, watch_for=Recorder(), checkpoints=Forgetful())
    with pytest.raises(NotImages):
        distill(images.astype(np.float32), labels, SPEC, num_classes=10, watch_for=Recorder(), checkpoints=Forgetful())
