"""The robustness laboratory: what attacks do to a classifier, bare and as served, and whether to believe it."""

from models.robustness.geometry import Norms, code_shift, gradient_amplitude, norms, robustness
from models.robustness.measuring import Evaluation, accuracy_under_attack, evaluate
from models.robustness.outcomes import AttackRow
from models.robustness.probes import zero_gradient_share
from models.robustness.served import Answer, Served, guard
from models.robustness.shares import Mean, Share, mean, share
from models.robustness.suites import Attack, Target, attacks

__all__ = [
    "Answer",
    "Attack",
    "AttackRow",
    "Evaluation",
    "Mean",
    "Norms",
    "Served",
    "Share",
    "Target",
    "accuracy_under_attack",
    "attacks",
    "code_shift",
    "evaluate",
    "gradient_amplitude",
    "guard",
    "mean",
    "norms",
    "robustness",
    "share",
    "zero_gradient_share",
]
