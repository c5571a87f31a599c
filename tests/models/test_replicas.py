"""A fit whose batches are cut into pieces: the gradients of the whole, the same fit on any number of cores."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batches import Batch, ImageBatches, ShortEpochs
from models.cores import Cores, threads, threads_that_pay
from models.replicas import MOST_PIECES, Replicas, Step, divides
from models.specs import FitSpec
from models.training import Forgetful, Silent, fit

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (320, 24, 24, 3), dtype=np.uint8)
LABELS = (IMAGES[..., 0].mean((1, 2)) > np.median(IMAGES[..., 0].mean((1, 2)))).astype(np.int64)
SPEC = FitSpec(epochs=2, batch_size=160, peak_lr=1e-2, mixed_precision=False, validation_share=0.0)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    with threads(before):
        yield
    assert torch.get_num_threads() == before


def network(*, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        middle: list[nn.Module] = [nn.BatchNorm2d(4)] if norm else []
        layers = (nn.Conv2d(3, 4, 3), *middle, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
        return nn.Sequential(*layers)


def cross_entropy(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x + 0.01 * torch.randn(x.shape, generator=rng)), y)


def exact_step(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def pieces_of(images: Tensor, model: nn.Module) -> int:
    with Cores(1) as cores:
        return Replicas(model, lambda copy: lambda part, rng: exact_step(copy, part), cores).pieces_of(images)  # noqa: ARG005


def a_batch(n: int = 70) -> Batch:
    x = torch.from_numpy(IMAGES[:n]).permute(0, 3, 1, 2).float() / 255
    return x, torch.from_numpy(LABELS[:n])


def fitted(cores: int, *, norm: bool) -> tuple[dict[str, Tensor], list[float]]:
    torch.set_num_threads(cores)
    model = network(norm=norm)
    batches = ImageBatches(IMAGES, LABELS, spec=SPEC, seed=3)
    assert {pieces_of(x, model) for x, _ in batches.train(0, torch.Generator())} == {2}
    result = fit(model, batches, cross_entropy, SPEC, seed=3, watch=Silent(), checkpoints=Forgetful(), name="cut")
    assert torch.get_num_threads() == cores
    return dict(model.state_dict()), result.train_loss


@pytest.mark.parametrize("norm", [False, True])
def test_a_fit_is_the_same_whether_its_pieces_have_one_core_or_two(norm: bool) -> None:
    one, one_losses = fitted(1, norm=norm)
    two, two_losses = fitted(2, norm=norm)
    assert one_losses == two_losses
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@pytest.mark.parametrize("pieces", [1, 2, 3, 4])
def test_pieces_give_the_loss_and_the_gradients_of_the_whole(pieces: int) -> None:
    batch, whole, cut = a_batch(), network(), network()
    expected = exact_step(whole, batch)
    expected.backward()  # type: ignore[no-untyped-call]
    with Cores(2) as cores:
        replicas = Replicas(cut, lambda model: lambda part, rng: exact_step(model, part), cores)  # noqa: ARG005
        value = replicas.backward(batch, torch.Generator(), pieces)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
    for own, other in zip(cut.parameters(), whole.parameters(), strict=True):
        assert own.grad is not None
        assert torch.allclose(own.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_replicas_follow_the_weights_and_keep_no_gradient_from_one_step_to_the_next() -> None:
    batch, model = a_batch(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with Cores(2) as cores:
        replicas = Replicas(model, lambda copy: lambda part, rng: exact_step(copy, part), cores)  # noqa: ARG005
        for _ in range(3):
            optimizer.zero_grad()
            told = replicas.backward(batch, torch.Generator(), 2)
            with torch.no_grad():
                assert float(told) == pytest.approx(float(exact_step(model, batch)), rel=1e-5)
            expected = torch.autograd.grad(exact_step(model, batch), list(model.parameters()))
            for parameter, gradient in zip(model.parameters(), expected, strict=True):
                assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
            optimizer.step()


def test_running_statistics_of_batch_norm_are_the_mean_over_pieces() -> None:
    batch, model = a_batch(64), network(norm=True)
    norm, convolution = model[1], model[0]  # type: ignore[index]
    with torch.no_grad():
        means = [convolution(part).mean((0, 2, 3)) for part in torch.tensor_split(batch[0], 2)]
    with Cores(2) as cores:
        replicas = Replicas(model, lambda copy: lambda part, rng: exact_step(copy, part), cores)  # noqa: ARG005
        replicas.backward(batch, torch.Generator(), 2)
        first = 0.1 * (means[0] + means[1]) / 2
        assert torch.allclose(norm.running_mean, first, atol=1e-5)
        norm.running_mean.zero_()  # as if a batch that was not cut had moved it
        replicas.backward(batch, torch.Generator(), 2)
        assert torch.allclose(norm.running_mean, first, atol=1e-5)


def test_pieces_draw_different_noise_and_a_batch_draws_the_same_again() -> None:
    drawn: list[Tensor] = []

    def step(part: Batch, rng: torch.Generator) -> Tensor:
        drawn.append(torch.rand(3, generator=rng))
        return part[0].mean() * next(model.parameters()).sum()

    model = network()
    with Cores(1) as cores:
        replicas = Replicas(model, lambda copy: step, cores)  # noqa: ARG005
        for _ in range(2):
            replicas.backward(a_batch(), torch.Generator().manual_seed(7), 2)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])


def test_a_piece_that_fails_fails_the_step_after_the_others_have_ended() -> None:
    failed, ended = threading.Event(), threading.Event()

    def step_of(model: nn.Module) -> Step:
        def step(part: Batch, rng: torch.Generator) -> Tensor:
            if model is whole:
                failed.set()
                raise FloatingPointError("a piece")
            assert failed.wait(30)
            time.sleep(0.2)
            value = exact_step(model, part)
            ended.set()
            return value

        return step

    torch.set_num_threads(2)
    whole = network()
    with Cores(2) as cores:
        with pytest.raises(FloatingPointError, match="a piece"):
            Replicas(whole, step_of, cores).backward(a_batch(), torch.Generator(), 2)
        assert ended.is_set()
    assert torch.get_num_threads() == 2


def test_in_bfloat16_a_loss_that_takes_the_weights_twice_has_the_same_gradients_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Autocast's cache of weights is one for all threads: a piece that ends would empty the other's."""
    monkeypatch.setattr("models.training.has_bfloat16", lambda device: True)  # noqa: ARG005
    spec = SPEC.model_copy(update={"mixed_precision": True, "epochs": 1})

    def twice(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        x, y = batch
        for _ in range(int(torch.randint(1, 6, (1,), generator=rng))):  # so that pieces end at different times
            model(x).float()
        return F.cross_entropy(model(x).float(), y) + F.cross_entropy(model(x.flip(3)).float(), y)

    def weights() -> list[Tensor]:
        torch.set_num_threads(2)
        model = network()
        batches = ImageBatches(IMAGES, LABELS, spec=spec, seed=3)
        fit(model, batches, twice, spec, seed=3, watch=Silent(), checkpoints=Forgetful(), name="twice")
        return [parameter.detach().clone() for parameter in model.parameters()]

    first = weights()
    for _ in range(6):
        assert all(torch.equal(a, b) for a, b in zip(first, weights(), strict=True))


def test_a_fit_that_has_ended_is_not_kept_alive() -> None:
    model = network()
    batches = ImageBatches(IMAGES, LABELS, spec=SPEC, seed=3)
    alive = weakref.ref(batches)
    gc.collect()
    gc.disable()
    try:
        fit(model, batches, cross_entropy, SPEC, seed=3, watch=Silent(), checkpoints=Forgetful(), name="cut")
        del batches
        assert alive() is None
    finally:
        gc.enable()


def test_how_a_batch_is_cut_depends_on_its_shape_and_on_batch_norm() -> None:
    def pieces(n: int, side: int, *, norm: bool = False) -> int:
        return pieces_of(torch.empty(n, 3, side, side), network(norm=norm))

    assert pieces(64, 8) == 1
    assert pieces(64, 32) == pieces(63, 32) == 2
    assert pieces(128, 16) == pieces(127, 16) == 2
    assert pieces(4096, 64) == MOST_PIECES
    assert pieces(8, 256) == 1
    assert pieces(64, 32, norm=True) == 1
    assert pieces(128, 32, norm=True) == pieces(127, 32, norm=True) == 2
    assert pieces_of(torch.empty(1000, 20), network()) == 1


def test_a_network_that_draws_from_the_global_generator_is_not_cut() -> None:
    assert divides(network(norm=True))
    assert not divides(nn.Sequential(network(), nn.Dropout(0.5)))


def test_small_batches_are_computed_by_one_thread() -> None:
    torch.set_num_threads(2)
    assert threads_that_pay(torch.empty(64, 1, 8, 8)) == 1
    assert threads_that_pay(torch.empty(64, 3, 32, 32)) == 2


def test_cores_answer_in_order_and_take_no_more_at_a_time_than_they_are() -> None:
    torch.set_num_threads(2)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    with Cores(2) as cores:
        made = cores.imap(lambda number: (number, torch.get_num_threads()), items())
        assert next(made) == (0, 1)
        assert len(taken) <= 3
        assert list(made) == [(1, 1), (2, 1), (3, 1), (4, 2)]  # who is alone has both
    assert torch.get_num_threads() == 2


def test_short_epochs_see_another_part_of_a_large_set_each_time() -> None:
    whole = ImageBatches(IMAGES, np.arange(320), spec=SPEC, seed=0)
    short = ShortEpochs.of(whole, 160, SPEC.batch_size)
    seen = [
        [int(row) for _, rows in short.train(epoch, torch.Generator().manual_seed(epoch)) for row in rows]
        for epoch in range(2)
    ]
    assert short.steps == 1
    assert [len(rows) for rows in seen] == [160, 160]
    assert set(seen[0]) != set(seen[1])
    assert ShortEpochs.of(whole, 10_000, SPEC.batch_size).steps == whole.steps
