"""Scores to p-values, thresholds and intervals; numpy only. Higher scores are more suspicious throughout."""

from models.calibration.conformal import (
    AlphaTooSmall,
    ClassesTooSmall,
    Float64s,
    Floats,
    Ranks,
    check_alpha,
    check_alpha_per_class,
    conformal_p_values,
    infer_threshold,
    samples_needed,
    smallest_alpha,
    threshold_at_fpr,
)
from models.calibration.discoveries import adjusted_p_values, benjamini_hochberg, smallest_share
from models.calibration.intervals import realised_rate_bounds, wilson_interval
from models.calibration.joint import JointTest
from models.calibration.per_class import PanelTest, PerClassTest, class_p_values
from models.calibration.separation import auroc

__all__ = [
    "AlphaTooSmall",
    "ClassesTooSmall",
    "Float64s",
    "Floats",
    "JointTest",
    "PanelTest",
    "PerClassTest",
    "Ranks",
    "adjusted_p_values",
    "auroc",
    "benjamini_hochberg",
    "check_alpha",
    "check_alpha_per_class",
    "class_p_values",
    "conformal_p_values",
    "infer_threshold",
    "realised_rate_bounds",
    "samples_needed",
    "smallest_alpha",
    "smallest_share",
    "threshold_at_fpr",
    "wilson_interval",
]
