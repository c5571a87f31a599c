"""The filter as a whole: surrogates, perturbations, a denoising autoencoder, and the score of an image."""

from models.filtering.crossed import CrossFilter, CrossFit, cross_fit_filter
from models.filtering.fitting import FilterFit, NoSurrogates, fit_filter
from models.filtering.trained import Filter, FilterModule, Network, OtherShape, UnknownFilter
from models.surrogates import classify

__all__ = [
    "CrossFilter",
    "CrossFit",
    "Filter",
    "FilterFit",
    "FilterModule",
    "Network",
    "NoSurrogates",
    "OtherShape",
    "UnknownFilter",
    "classify",
    "cross_fit_filter",
    "fit_filter",
]
