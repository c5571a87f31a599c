"""Hlihor's families: their losses in closed form, what their codes do, and the way through the filter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models.autoencoders.contraction import jacobian_norm
from models.autoencoders.convolutional import Code, ConvolutionalAutoencoder, draw
from models.filter_specs import ConvolutionalSpec
from models.filtering import Filter, FilterFit, NoSurrogates, fit_filter
from models.filtering.losses import convolutional_loss, kl_to_standard_normal, noisy
from models.images import Images, to_uint8
from models.onnx_export import check_parity, export_detector
from models.seeding import seeded
from models.specs import SanitiseSpec
from models.training import Forgetful, Silent

PRESETS = ["hlihor-ae", "hlihor-dae", "hlihor-vae", "hlihor-dvae", "hlihor-cae", "hlihor-cvae"]
QUICK = ("hlihor-dae",)
"""The others learn in the slow suite."""
SMALL: dict[str, Any] = {"width": 8, "latent": 16, "fit": {"epochs": 12, "peak_lr": 1e-2}}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=rng(seed))


def network(shape: tuple[int, int, int] = (1, 8, 8), **given: Any) -> ConvolutionalAutoencoder:
    with seeded(1):
        return ConvolutionalAutoencoder(image_shape=shape, **({"width": 4, "latent": 6, "variational": False} | given))


@pytest.fixture(autouse=True, scope="module")
def short_epochs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.filtering.fitting.SAMPLES_AN_EPOCH", 800)
        patch.setattr("models.surrogates.IMAGES_AN_EPOCH", 100)
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[Images, npt.NDArray[np.int64]]:
    data = load_digits()
    x = torch.from_numpy(data.images / 16).float()[:, None]
    large = F.interpolate(x, size=(16, 16), mode="bicubic", align_corners=False).clamp(0, 1)
    return to_uint8(large), data.target.astype(np.int64)


def fitted(
    digits: tuple[Images, npt.NDArray[np.int64]], preset: str, phases: list[str] | None = None, **given: Any
) -> FilterFit:
    spec = SanitiseSpec.model_validate({"preset": preset, "filter": SMALL | given.pop("filter", {}), **given})

    def enter(phase: str) -> Silent:
        if phases is not None:
            phases.append(phase)
        return Silent()

    images, labels = digits[0][:300], digits[1][:300]
    return fit_filter(images, labels, spec, num_classes=10, watch_for=enter, checkpoints=Forgetful())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 28, 28), (3, 32, 32), (3, 256, 250)])
@pytest.mark.parametrize("variational", [False, True])
def test_it_gives_back_the_shape_and_range_it_takes(shape: tuple[int, int, int], variational: bool) -> None:
    x, own = some(2, *shape), network(shape, variational=variational, noise_seed=3 if variational else None)
    with torch.no_grad():
        x_hat, code = own(x), own.encode(x)
    assert x_hat.shape == x.shape
    assert 0 <= x_hat.min() <= x_hat.max() <= 1
    assert code.mean.shape == (2, 6)
    assert (code.log_variance is not None) == variational


def test_the_paper_s_network_has_two_convolutions_each_way() -> None:
    spec = ConvolutionalSpec()
    own = network((3, 32, 32), width=spec.width, latent=spec.latent)
    sizes = [tuple(part.weight.shape) for part in own.modules() if isinstance(part, nn.Conv2d)]
    assert sizes == [(32, 3, 3, 3), (32, 32, 3, 3), (32, 32, 3, 3), (3, 32, 3, 3)]
    assert own.mean.out_features == own.widen.in_features == 128


def exact_jacobian_norm(own: ConvolutionalAutoencoder, x: Tensor) -> list[float]:
    return [
        float(torch.autograd.functional.jacobian(lambda at: own.encode(at).mean, one[None]).square().sum())  # type: ignore[no-untyped-call]
        for one in x
    ]


@pytest.mark.slow
def test_the_penalty_is_the_jacobian_s_norm() -> None:
    own, x = network(), some(3, 1, 8, 8)
    wanted = exact_jacobian_norm(own, x)
    got = jacobian_norm(lambda at: own.encode(at).mean, x, rng(), draws=4000)
    assert got.tolist() == pytest.approx(wanted, rel=0.05)
    assert len({round(value, 6) for value in wanted}) == 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_of_a_diagonal_map_one_draw_is_exact(seed: int, factor: float) -> None:
    x = some(4, 5, seed=seed)
    assert torch.allclose(jacobian_norm(lambda at: factor * at, x, rng(seed)), torch.full((4,), 5 * factor**2))


def test_the_penalty_can_be_descended_and_works_without_gradients_around_it() -> None:
    own, x = network(), some(8, 1, 8, 8)
    before = sum(exact_jacobian_norm(own, x))
    optimizer, draws = torch.optim.SGD(own.parameters(), 0.1), rng()
    for _ in range(10):
        optimizer.zero_grad()
        jacobian_norm(lambda at: own.encode(at).mean, x, draws).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert sum(exact_jacobian_norm(own, x)) < 0.7 * before
    with torch.no_grad():
        assert (jacobian_norm(lambda at: own.encode(at).mean, x, rng()) > 0).all()


def test_kl_is_torch_s() -> None:
    mean, log_variance = 2 * some(5, 7) - 1, 2 * some(5, 7, seed=1) - 1
    ours = torch.distributions.Normal(mean, (log_variance / 2).exp())
    wanted = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl_to_standard_normal(mean, log_variance), wanted, atol=1e-5)
    assert kl_to_standard_normal(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


def test_the_scale_is_the_covariance_s() -> None:
    code = Code(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(4)]]))
    draws = draw(code, torch.randn(40000, 2, generator=rng()), scale=9.0)
    assert draws.mean(0).tolist() == pytest.approx([1, -2], abs=0.1)
    assert draws.var(0).tolist() == pytest.approx([9, 36], rel=0.05)
    assert torch.equal(draw(Code(code.mean, None), torch.ones(2), scale=9.0), code.mean)
    assert torch.equal(draw(code, torch.ones(2), scale=0.0), code.mean)


def test_noise_is_gaussian_and_unclipped() -> None:
    x = torch.zeros(50, 1, 20, 20)
    got = noisy(x, 0.3, rng())
    assert float(got.std()) == pytest.approx(0.3, rel=0.02)
    assert got.min() < 0
    assert noisy(x, 0.0, rng()) is x


def loss_of(own: ConvolutionalAutoencoder, x: Tensor, **spec: Any) -> float:
    with torch.no_grad():
        return float(convolutional_loss(ConvolutionalSpec(**spec))(own, (x,), rng(5)))


def test_the_loss_is_the_sum_of_its_terms() -> None:
    x, plain, variational = some(6, 1, 8, 8), network(), network(variational=True)
    with torch.no_grad():
        error, code = float((plain(x) - x).square().mean()), variational.encode(x)
    assert loss_of(plain, x, noise_std=0.0) == pytest.approx(error, rel=1e-5)
    extra = loss_of(plain, x, noise_std=0.0, contractive_weight=2.0) - error
    signs = rng(5)
    torch.randn(6, 6, generator=signs)  # what the loss draws for the code before
    wanted = float(jacobian_norm(lambda at: plain.encode(at).mean, x, signs).detach().mean())
    assert extra == pytest.approx(2 * wanted / 64, rel=1e-3)
    assert code.log_variance is not None
    kl = float(kl_to_standard_normal(code.mean, code.log_variance).mean())
    added = loss_of(variational, x, variational=True, noise_std=0.0, kl_weight=3.0) - loss_of(
        variational, x, variational=True, noise_std=0.0, kl_weight=0.0
    )
    assert added == pytest.approx(3 * kl / 64, rel=1e-3)


def test_only_a_denoiser_is_asked_to_remove_the_noise() -> None:
    class Identity(ConvolutionalAutoencoder):
        def decode(self, code: Tensor) -> Tensor:  # noqa: ARG002
            return self.kept

        def encode(self, x: Tensor) -> Code:
            self.kept = x
            return super().encode(x)

    with seeded(0):
        own = Identity(image_shape=(1, 8, 8), width=4, latent=4, variational=False)
    x = some(200, 1, 8, 8)
    assert loss_of(own, x, noise_std=0.2) == 0
    assert loss_of(own, x, noise_std=0.2, denoising=True) == pytest.approx(0.04, rel=0.05)


@pytest.mark.parametrize("preset", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PRESETS])
def test_every_family_learns_and_goes_the_filter_s_way(
    preset: str, digits: tuple[Images, npt.NDArray[np.int64]]
) -> None:
    phases: list[str] = []
    fit = fitted(digits, preset, phases)
    judge, images = fit.filter, digits[0][900:1100]
    assert phases == ["denoiser"]
    assert (judge.kind, judge.score_name) == ("convolutional", "reconstruction_error")
    assert fit.losses.train_loss[-1] < 0.9 * fit.losses.train_loss[0]
    mean_image = np.square((images - digits[0][:300].mean(0)) / 255.0).mean()
    assert judge.score(images).mean() < 0.9 * mean_image  # more than one picture for all
    again = Filter.load(judge.state(), json.loads(json.dumps(judge.meta())))
    assert np.array_equal(again.score(images), judge.score(images))
    json.dumps(fit.notes)
    with pytest.raises(NoSurrogates):
        fit.classify(images)


@pytest.mark.slow
def test_flagged_images_are_reformed_by_label_only_where_asked(digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    phases: list[str] = []
    fit = fitted(digits, "hlihor-ae", phases, policy={"on_flag": "reform"}, perturbation={"surrogates": 1})
    assert phases == ["surrogates", "denoiser"]
    assert fit.classify(digits[0][900:910]).shape == (10,)


@pytest.fixture(scope="module")
def sampled(digits: tuple[Images, npt.NDArray[np.int64]]) -> Filter:
    return fitted(digits, "hlihor-vae", filter={"sample": True, "latent_scale": 4.0}).filter


def test_a_sampled_score_depends_on_the_seed_and_on_no_other_image(
    sampled: Filter, digits: tuple[Images, npt.NDArray[np.int64]]
) -> None:
    images = digits[0][900:1050]
    together = sampled.score(images)
    assert np.array_equal(sampled.score(images[::-1]), together[::-1])
    assert np.array_equal(sampled.score(images[7:8]), together[7:8])
    again = Filter.load(sampled.state(), json.loads(json.dumps(sampled.meta())))
    assert np.array_equal(again.score(images), together)
    for other in ({"noise_seed": None}, {"noise_seed": 1}, {"latent_scale": 1.0}):
        meta = sampled.meta() | {"layers": sampled.layers | other}
        assert not np.allclose(Filter.load(sampled.state(), meta).score(images), together, rtol=1e-3)
    still = Filter.load(sampled.state(), sampled.meta() | {"layers": sampled.layers | {"noise_seed": None}})
    scaled = sampled.meta() | {"layers": sampled.layers | {"latent_scale": 0.0}}
    assert np.array_equal(still.score(images), Filter.load(sampled.state(), scaled).score(images))


@pytest.mark.slow
def test_it_exports_with_its_draw(sampled: Filter, digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    images = digits[0][900:905]
    expected: dict[str, npt.NDArray[Any]] = {
        "scores": sampled.score(images),
        "reconstruction": sampled.reconstruct(images),
    }
    graph = export_detector(sampled, sampled.image_shape)
    assert check_parity(graph, {"images": images}, expected, atol=1e-5) <= 1e-5


@pytest.mark.slow
def test_a_contractive_code_moves_less(digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    x = torch.from_numpy(digits[0][900:910]).permute(0, 3, 1, 2) / 255
    free, held = (
        fitted(digits, "hlihor-cae", filter={"contractive_weight": weight}).filter.network for weight in (0.0, 1.0)
    )
    assert isinstance(free, ConvolutionalAutoencoder)
    assert isinstance(held, ConvolutionalAutoencoder)
    assert sum(exact_jacobian_norm(held, x)) < 0.5 * sum(exact_jacobian_norm(free, x))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_are_the_families(preset: str) -> None:
    spec = SanitiseSpec.model_validate({"preset": preset})
    own = spec.filter
    assert isinstance(own, ConvolutionalSpec)
    name = preset.removeprefix("hlihor-")
    assert own.variational == ("v" in name)
    assert own.denoising == ("d" in name)
    assert (own.contractive_weight > 0) == name.startswith("c")
    assert (own.latent, own.width, own.sample) == (128, 32, False)
    assert own.fit.optimizer == "adam"
    by_sgd = SanitiseSpec.model_validate({"preset": preset, "filter": {"fit": {"optimizer": "sgd"}}})
    assert by_sgd.filter.fit.optimizer == "sgd"
    assert spec.calibration.false_quarantine_rate == 0.01
    assert SanitiseSpec.model_validate(spec.model_dump(mode="json")) == spec
    other = SanitiseSpec.model_validate({"preset": preset, "filter": {"kind": "residual"}})
    assert other.filter.kind == "residual"  # of another kind: nothing of the preset's is laid over it


@pytest.mark.parametrize(
    ("wrong", "why"), [({"sample": True}, "variational"), ({"denoising": True, "noise_std": 0}, "noise_std")]
)
def test_contradictions_are_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        ConvolutionalSpec.model_validate(wrong)
