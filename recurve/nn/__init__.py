"""Modules with the parameters and state_dict of `torch.nn`, running on `recurve.ops`."""

from recurve._probe import Probe, ProbedCall, probe
from recurve.nn.conv import Conv2d, ConvBlock
from recurve.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Conv2d",
    "ConvBlock",
    "GRUCell",
    "LSTMCell",
    "Probe",
    "ProbedCall",
    "RNNCell",
    "probe",
]
