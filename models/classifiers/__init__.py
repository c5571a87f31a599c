"""Teacher and student networks: a convolutional trunk, run once, and a head with explicit dropout masks."""

from models.classifiers.layers import GridPool as GridPool
from models.classifiers.layers import ImageNorm as ImageNorm
from models.classifiers.network import Classifier as Classifier
from models.classifiers.network import UnfitNetwork as UnfitNetwork
from models.classifiers.network import build_classifier as build_classifier
from models.classifiers.network import check_fits as check_fits
from models.classifiers.network import restore_classifier as restore_classifier
from models.classifiers.residual import convolution as convolution
