"""The networks that studies train, made of this project's own layers."""

from ablations.models.convolutional import HEADS, ConvNet
from ablations.models.dropout import Dropout
from ablations.models.recurrent import CELLS, Forecaster

__all__ = ["CELLS", "HEADS", "ConvNet", "Dropout", "Forecaster"]
