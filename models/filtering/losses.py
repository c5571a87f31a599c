"""What each autoencoder is trained to do, as losses of the fit loop; their batches are (x, deltas) or (x,)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoders.contraction import jacobian_norm
from models.autoencoders.convolutional import Code, ConvolutionalAutoencoder, draw
from models.filter_specs import ConvolutionalSpec, PerturbationSpec
from models.perturbations import add
from models.training import Batch, Loss

FAINTEST = 0.05
"""Added to the strength of a perturbation, of which a clean image has none: a clean image counts twenty times as much
as one perturbed at ε."""
STRENGTH_POWER = 1.5


def residual_loss(spec: PerturbationSpec) -> Loss:
    """Squared error between n(x) and the perturbation in units of ε, of batches (x, deltas), by the image's strength.

    An image's error is divided by FAINTEST plus a power of its perturbation's own mean square: otherwise strong
    perturbations, which anything can see, make up nearly all of the loss, and the score of clean images is left to
    chance.
    """

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        x, deltas = batch
        x_adv = add(x, deltas, spec, rng)
        target = ((x_adv - x) / spec.eps_linf).flatten(1)
        error = (model(x_adv).flatten(1) - target).square().mean(dim=1)
        weighted: Tensor = error / (FAINTEST + target.square().mean(dim=1) ** STRENGTH_POWER)
        return weighted.mean()

    return loss


def denoising_loss(spec: PerturbationSpec) -> Loss:
    """Mean squared error between the reconstruction and the clean image, of batches (x, deltas)."""

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        x, deltas = batch
        return F.mse_loss(model(add(x, deltas, spec, rng)), x)

    return loss


def convolutional_loss(spec: ConvolutionalSpec) -> Loss:
    """The loss that ConvolutionalSpec tells, of batches (x,), divided by the number of pixels and channels.

    The division leaves the balance of the terms as it is and makes learning rates fit images of every size. While
    training, a variational code is always drawn, at its own covariance. Noise leaves the pixel range: it is not
    clipped. Source: Hlihor et al. 2022, sections 2 and 4; deviation: pixels are Gaussian, the paper does not say.
    """

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        if not isinstance(model, ConvolutionalAutoencoder):
            raise TypeError(f"want a ConvolutionalAutoencoder, not {type(model).__name__}")
        clean = batch[0]
        x = noisy(clean, spec.noise_std, rng)
        code = _in_float32(model.encode(x))
        noise = torch.randn(code.mean.shape, generator=rng, device=rng.device)
        x_hat = model.decode(draw(code, noise))
        total = (x_hat - (clean if spec.denoising else x)).square().flatten(1).sum(dim=1)
        if code.log_variance is not None and spec.kl_weight:
            total = total + spec.kl_weight * kl_to_standard_normal(code.mean, code.log_variance)
        if spec.contractive_weight:
            total = total + spec.contractive_weight * jacobian_norm(lambda at: model.encode(at).mean, x, rng)
        return total.mean() / clean[0].numel()

    return loss


def _in_float32(code: Code) -> Code:
    return Code(code.mean.float(), None if code.log_variance is None else code.log_variance.float())


def noisy(x: Tensor, std: float, rng: torch.Generator) -> Tensor:
    """x plus Gaussian noise of standard deviation `std`, in units of the pixel range; not clipped to it."""
    return x + std * torch.randn(x.shape, generator=rng, device=rng.device) if std else x


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp log_variance) ‖ N(0, 1)) of each row, in nats: (n, latent) twice to (n,).

    Source: Kingma & Welling 2014, appendix B.
    """
    kl: Tensor = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
    return kl
