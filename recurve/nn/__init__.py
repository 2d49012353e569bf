"""Modules with the parameters and state_dict of `torch.nn`, running on `recurve.ops`."""

from recurve.nn.conv import ConvBlock
from recurve.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "ConvBlock", "GRUCell", "LSTMCell", "RNNCell"]
