"""Functional API: each fused op beside its plain-torch reference."""

from recurve.ops.conv import conv_block, conv_block_reference
from recurve.ops.recurrent import gru, gru_reference, lstm, lstm_reference, rnn, rnn_reference

__all__ = [
    "conv_block",
    "conv_block_reference",
    "gru",
    "gru_reference",
    "lstm",
    "lstm_reference",
    "rnn",
    "rnn_reference",
]
