"""Distillation: a teacher trained at temperature T, its soft labels, and a student trained on them at T.

Sources: Papernot et al. 2016, section IV (defensive); Papernot & McDaniel 2017 (extended); Goldblum et al. 2020
(robust). The student serves at T = 1.
"""

from models.distillation.adversary import Adversary as Adversary
from models.distillation.adversary import OverfittingCheck as OverfittingCheck
from models.distillation.adversary import check_overfitting as check_overfitting
from models.distillation.distilling import Distilled as Distilled
from models.distillation.distilling import build_student as build_student
from models.distillation.distilling import distill as distill
from models.distillation.labels import outlier_mass as outlier_mass
from models.distillation.labels import soft_labels as soft_labels
from models.distillation.labels import with_outlier_class as with_outlier_class
from models.distillation.losses import hard_label_loss as hard_label_loss
from models.distillation.losses import robust_loss as robust_loss
from models.distillation.losses import soft_label_loss as soft_label_loss
