"""What can go wrong while a prediction is asked for; each is a branch of `service.errors` with its own stable code."""

from __future__ import annotations

from service.errors import Corrupt, InvalidInput, TooLarge, TooManyRequests, Unavailable, UnsupportedMedia


class AlphaNotPromised(InvalidInput):
    """The calibration set is too small to hold the α asked for."""

    code = "alpha_too_small"


class AlphaOutOfRange(InvalidInput):
    """α is a share: above 0 and below 1."""

    code = "alpha_out_of_range"


class PassesOutOfRange(InvalidInput):
    """Fewer dropout passes than can disagree, or more than are worth it."""

    code = "mc_passes_out_of_range"


class CannotReform(InvalidInput):
    """The model has no autoencoder to reform images with."""

    code = "cannot_reform"


class BadImages(InvalidInput):
    """A body of a known format whose images cannot be used; the code says why."""

    code = "bad_images"


class ImageUndecodable(BadImages):
    """One encoded image is damaged, or of a kind that has no 8-bit meaning."""

    code = "image_undecodable"


class TooManyImages(TooLarge):
    """More images in one request than the settings allow."""

    code = "too_many_images"


class BodyTooLarge(TooLarge):
    """A body over the limit, as sent or as it unfolds."""

    code = "body_too_large"


class UnknownBody(UnsupportedMedia):
    """Neither an image, nor an npz, nor a JSON array, nor a form with files."""

    code = "unknown_body"


class QueueFull(Unavailable):
    """As many requests are waiting as the settings allow."""

    code = "queue_full"


class TenantQueueFull(TooManyRequests):
    """This tenant has its whole share of the places, and others want theirs."""

    code = "tenant_queue_full"


class DeadlineExceeded(Unavailable):
    """The request could not be answered in the time it had; nothing was computed, or it is thrown away."""

    code = "deadline_exceeded"


class BodyTooSlow(Unavailable):
    """The body did not arrive in time; its place in the queue is needed."""

    code = "body_too_slow"


class EngineClosed(Unavailable):
    """The gateway is shutting down."""

    code = "shutting_down"


class CudaMissing(Unavailable):
    """The settings demand CUDA and it is not there."""

    code = "cuda_missing"


class ModelFault(Corrupt):
    """A network whose bytes are as published, and that still cannot be run or answers nonsense."""

    code = "model_fault"
