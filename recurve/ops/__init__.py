"""Functional API: each fused op beside its plain-torch reference."""

from recurve import _extension
from recurve.ops import _conv_rules, _recurrent_rules
from recurve.ops.conv import conv_block, conv_block_reference
from recurve.ops.recurrent import gru, gru_reference, lstm, lstm_reference, rnn, rnn_reference

if _extension.has("lstm"):
    _recurrent_rules.register()
if _extension.has("conv_block"):
    _conv_rules.register()

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
