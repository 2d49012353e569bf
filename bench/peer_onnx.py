"""ONNX Runtime as a peer, for inference on the CPU: a graph of one LSTM, GRU, RNN, or convolution block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bench.cases import Case, Convolution, Recurrent
from bench.peers import NotServed
from bench.protocol import Competitor, Sample

OPSET = 17
GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # of torch's gates: ONNX has i o f c and z r h


def competitor(case: Case, models: Sequence[nn.Module]) -> Competitor:
    if not isinstance(case, Recurrent | Convolution) or case.mode != "infer":
        raise NotServed("computes inference of single models only")
    if isinstance(case, Recurrent) and case.layers > 1:
        raise NotServed("the graph is written for one layer")
    if next(models[0].parameters()).is_cuda:
        raise NotServed("is raced on the CPU only")
    graph = _recurrent(case, models[0]) if isinstance(case, Recurrent) else _convolution(case, models[0])
    session = _session(graph)
    names = [output.name for output in session.get_outputs()]
    bind = onnxruntime.OrtValue.ortvalue_from_numpy

    def run(x: onnxruntime.OrtValue) -> list[onnxruntime.OrtValue]:
        return session.run_with_ort_values(names, {"x": x})

    def answer(outputs: Sequence[onnxruntime.OrtValue]) -> list[Tensor]:
        arrays = [torch.from_numpy(output.numpy()) for output in outputs]
        return _as_torch(case, arrays)

    def prepare(sample: Sample) -> onnxruntime.OrtValue:
        return bind(sample[0].contiguous().numpy())

    return Competitor(run, answer=answer, prepare=prepare, foreign=True)


def _session(graph: onnx.GraphProto) -> onnxruntime.InferenceSession:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # its threads may spin while they work, but not into the turn of the next competitor
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _recurrent(case: Recurrent, module: nn.Module) -> onnx.GraphProto:
    weights = [weight.detach().numpy() for weight in module.parameters()]
    directions = 1 + case.bidirectional
    per_direction = [weights[4 * d : 4 * d + 4] for d in range(directions)]

    def ordered(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        gates = np.split(matrix, len(GATE_ORDER[case.cell]))
        return np.concatenate([gates[gate] for gate in GATE_ORDER[case.cell]])

    constants = {
        "W": np.stack([ordered(w_ih) for w_ih, *_ in per_direction]),
        "R": np.stack([ordered(w_hh) for _, w_hh, *_ in per_direction]),
        "B": np.stack([np.concatenate([ordered(b_ih), ordered(b_hh)]) for *_, b_ih, b_hh in per_direction]),
    }
    outputs = ["y", "h", "c"] if case.cell == "LSTM" else ["y", "h"]
    options: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "GRU" else {}
    node = helper.make_node(
        case.cell,
        ["x", *constants],
        outputs,
        hidden_size=case.hidden_size,
        direction="bidirectional" if case.bidirectional else "forward",
        **options,
    )
    shapes = [(case.steps, directions, case.batch, case.hidden_size)] + [
        (directions, case.batch, case.hidden_size) for _ in outputs[1:]
    ]
    return _graph([node], (case.steps, case.batch, case.input_size), dict(zip(outputs, shapes, strict=True)), constants)


def _convolution(case: Convolution, module: nn.Module) -> onnx.GraphProto:
    weight, bias = (parameter.detach().numpy() for parameter in module.parameters())
    groups = case.in_channels if case.depthwise else 1
    nodes = [
        helper.make_node("Conv", ["x", "W", "B"], ["convolved"], pads=[case.kernel // 2] * 4, group=groups),
        helper.make_node("Relu", ["convolved"], ["active"]),
        helper.make_node("MaxPool", ["active"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    inputs = (case.batch, case.in_channels, case.size, case.size)
    outputs = {"y": (case.batch, case.out_channels, case.size // 2, case.size // 2)}
    return _graph(nodes, inputs, outputs, {"W": weight, "B": bias})


def _graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: tuple[int, ...],
    outputs: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, NDArray[np.float32]],
) -> onnx.GraphProto:
    def value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    return helper.make_graph(
        nodes,
        "step",
        [value("x", inputs)],
        [value(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


def _as_torch(case: Case, outputs: list[Tensor]) -> list[Tensor]:
    """ONNX keeps directions apart, (T, directions, B, H), where torch joins them, (T, B, directions H)."""
    if isinstance(case, Recurrent):
        outputs[0] = outputs[0].transpose(1, 2).flatten(2)
    return outputs
