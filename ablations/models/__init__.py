"""The networks that studies train, made of this project's own layers."""

from ablations.models.convolutional import ConvNet, Style
from ablations.models.dropout import Dropout
from ablations.models.memory import Reader
from ablations.models.recurrent import CELLS, Forecaster, Quantiles

__all__ = ["CELLS", "ConvNet", "Dropout", "Forecaster", "Quantiles", "Reader", "Style"]
