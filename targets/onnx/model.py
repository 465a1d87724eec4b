"""A network as an ONNX model: one model step with its states outside, or the whole sequence.

In the sequence, what has no state is folded over time (steps x samples), and every neuron is one Scan whose body is its
traced step; the nodes of a cycle share one Scan. Neuron axes keep their order; sample and time are of any length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from eiexport import __version__
from eiexport.alphabet import interval
from eiexport.graph import Network
from eiexport.integers import TOP
from eiexport.ops import Ints
from eiexport.steps import text
from eiexport.tracing import Dag
from targets.base import TargetError
from targets.onnx.ops import Body, Constants, Lines, Names, value_info
from targets.traced import DRIVEN, NEXT, advanced, driven, holds_state, stepped, stream

OPSET, IR = 18, 8  # onnxruntime reads them since 1.14
BATCH, TIME = "batch", "time"
MOST = 2_000_000_000  # bytes in one protobuf file


class Form:
    """The number types of a model: inside, and at its inputs and outputs."""

    def __init__(self, network: Network) -> None:
        self.network, self.whole = network, network.integer
        self.inside = np.dtype(np.float64 if self.whole else np.float32)

    def outside(self, name: str) -> np.dtype:
        """Of a node's output, or of a state: float32, or the integers that hold it for certain."""
        if not self.whole:
            return np.dtype(np.float32)
        network, (node, _, state) = self.network, name.rpartition(".")
        if name in network.steps:
            a = network.alphabets[name]
        elif state.startswith("past") and not network.steps[node].neuron:  # a delay's
            a = network.arriving(node)
        else:
            a = network.alphabets[node] if state.startswith("past") else interval(-TOP - 1, TOP + 1, True)
        return np.dtype(np.int32 if max(-a.lo, a.hi) < 1 << 31 else np.int64)


def step_model(network: Network, **metadata: str) -> ModelProto:
    """One model step: takes the input (batch, *neuron) and every state, gives the recorded nodes and `STATE_next`.

    States are zero at the start of each sample.
    """
    form, dag = Form(network), stream(network)
    inputs = {n: (BATCH, *s.shape[1:]) for n, s in dag.inputs.items()}
    outputs = {_next(n, dag): (BATCH, *o.shape[1:]) for n, o in zip(dag.names, dag.outputs, strict=True)}
    body = Body(Constants(form.inside, Names((*inputs, *outputs))))
    given = {n: body.cast(n, form.inside, n) if form.whole else n for n in inputs}
    made = Lines(body, form.whole).write(dag, given, dict(network.alphabets))
    types = {n: form.outside(n) for n in inputs} | {_next(n, dag): form.outside(n) for n in dag.names}
    _deliver(body, {_next(n, dag): value for n, value in made.items()}, form, types)
    return _model(network, body, inputs, outputs, form, types, f"{_title(network)}: one time step", metadata)


def sequence_model(network: Network, probe: bool = False, **metadata: str) -> ModelProto:
    """The whole sequence: takes the input (batch, time, *neuron), gives the recorded nodes (batch, time, *neuron).

    probe: also the neurons' registers, as `NODE.v` and `NODE.u`.
    """
    return _Sequence(network, probe).model(metadata)


class _Sequence:
    """A value is held time-major (time, batch, *neuron), folded (time x batch, *neuron), or both."""

    def __init__(self, network: Network, probe: bool) -> None:
        self.network, self.probe = network, probe
        self.form = Form(network)
        self.sent = {n: network.shapes[n] for n in network.recorded}
        for name in network.recorded if probe else ():
            observed = getattr(network.steps[name], "observed", ())
            self.sent |= {f"{name}.{k}": network.shapes[name] for k in observed}
        self.body = Body(Constants(self.form.inside, Names((network.input, *self.sent))))
        self.timed: dict[str, str] = {}
        self.folded: dict[str, str] = {}
        self.shapes: dict[str, Ints] = dict(network.shapes)

    def model(self, metadata: dict[str, str]) -> ModelProto:
        network, body, form = self.network, self.body, self.form
        major = self._swapped(network.input, len(network.shapes[network.input]))
        self.timed[network.input] = body.cast(major, form.inside, network.input) if form.whole else major
        lengths = body.add("Shape", [self.timed[network.input]], "lengths", start=0, end=2)
        self.lengths, self.batch = lengths, body.add("Slice", [lengths, *map(body.ints, ((1,), (2,)))], "batch")
        read = {s for came in network.sources.values() for s in came}
        for component in network.order:
            if component[0] in network.cycles:
                self._cycle(component)
            elif component[0] != network.input and (component[0] in read or component[0] in self.sent):
                self._node(component[0])
        inputs = {network.input: (BATCH, TIME, *network.shapes[network.input])}
        outputs = {n: (BATCH, TIME, *shape) for n, shape in self.sent.items()}
        types = {n: form.outside(n) for n in (*inputs, *outputs)}
        _deliver(body, {n: self._swapped(self._timed(n), len(s)) for n, s in self.sent.items()}, form, types)
        return _model(network, body, inputs, outputs, form, types, f"{_title(network)}: whole sequence", metadata)

    def _node(self, name: str) -> None:
        dag = driven(self.network, name)
        given = {s: self._folded(s) for s in dag.inputs}
        self.folded[name] = self._lines(self.body).write(dag, given, self._alphabets())[name]
        if holds_state(self.network, name):
            drive = f"{name}{DRIVEN}"
            self.shapes[drive], self.folded[drive] = tuple(dag.outputs[0].shape[1:]), self.folded.pop(name)
            self._scan(name, stepped(self.network, name), {drive: drive}, [name])

    def _cycle(self, component: tuple[str, ...]) -> None:
        dag = advanced(self.network, component, component)
        outside = {n: n for n in dag.inputs if n in self.network.graph.nodes}
        self._scan(component[0], dag, outside, component)

    def _scan(self, label: str, dag: Dag, arriving: dict[str, str], sent: Sequence[str]) -> None:
        """One Scan over time; arriving: values by the names of the trace's inputs, sent: nodes that it gives."""
        states = [n for n in dag.names if n not in sent]
        probed = [n for n in states if self.probe and n.rpartition(".")[2] in ("v", "u")]
        shapes = {n: s.shape[1:] for n, s in dag.inputs.items()}
        zeros = [self._zeros(shapes[n], n) for n in states]
        inner = Body(self.body.constants)
        given = {n: inner.unique(f"{label}/step/{n}") for n in (*states, *arriving)}
        made = self._lines(inner).write(dag, given, self._alphabets())
        results = [*states, *sent, *probed]
        names = [inner.unique(f"{label}/step/{n}.out") for n in results]
        inner.deliver({name: made[n] for name, n in zip(names, results, strict=True)})
        ends = [value_info(given[n], self.form.inside, (BATCH, *shapes[n])) for n in given]
        out = dict(zip(dag.names, (o.shape[1:] for o in dag.outputs), strict=True))
        gives = [value_info(n, self.form.inside, (BATCH, *out[r])) for n, r in zip(names, results, strict=True)]
        outputs = [self.body.unique(f"{label}/Scan.{n}") for n in results]
        self.body.nodes.append(
            helper.make_node(
                "Scan",
                [*zeros, *(self._timed(v) for v in arriving.values())],
                outputs,
                name=f"{label}/Scan",
                body=helper.make_graph(inner.nodes, f"{label} step", ends, gives),
                num_scan_inputs=len(arriving),
            )
        )
        for name, value in zip([*sent, *probed], outputs[len(states) :], strict=True):
            self.timed[name] = value
            self.shapes[name] = tuple(out[name])

    def _lines(self, body: Body) -> Lines:
        return Lines(body, self.form.whole)

    def _alphabets(self) -> dict[str, Any]:
        return dict(self.network.alphabets)

    def _zeros(self, shape: Ints, name: str) -> str:
        size = (
            self.body.add("Concat", [self.batch, self.body.ints(shape)], f"{name}/zero", axis=0)
            if shape
            else self.batch
        )
        value = helper.make_tensor("zero", helper.np_dtype_to_tensor_dtype(self.form.inside), [1], [0.0])
        return self.body.add("ConstantOfShape", [size], f"{name}/zero", value=value)

    def _folded(self, name: str) -> str:
        if name not in self.folded:
            shape = self.body.ints((-1, *self.shapes[name]))
            self.folded[name] = self.body.add("Reshape", [self.timed[name], shape], f"{name}/fold")
        return self.folded[name]

    def _timed(self, name: str) -> str:
        if name not in self.timed:
            size = self.body.add("Concat", [self.lengths, self.body.ints(self.shapes[name])], f"{name}/unfold", axis=0)
            self.timed[name] = self.body.add("Reshape", [self.folded[name], size], f"{name}/unfold")
        return self.timed[name]

    def _swapped(self, value: str, axes: int) -> str:
        """Sample and time exchanged."""
        return self.body.add("Transpose", [value], value.split("/")[0], perm=[1, 0, *range(2, 2 + axes)])


def _next(name: str, dag: Dag) -> str:
    return f"{name}{NEXT}" if name in dag.inputs else name


def _deliver(body: Body, outputs: dict[str, str], form: Form, types: dict[str, np.dtype]) -> None:
    """Values as the model's outputs."""
    if form.whole:
        outputs = {n: body.cast(value, types[n], n) for n, value in outputs.items()}
    body.deliver(outputs)


def _title(network: Network) -> str:
    return " -> ".join((network.input, *network.outputs))


def _model(
    network: Network,
    body: Body,
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    form: Form,
    types: dict[str, np.dtype],
    title: str,
    metadata: dict[str, str],
) -> ModelProto:
    def ends(values: dict[str, Any]) -> list[Any]:
        return [value_info(n, types[n], shape) for n, shape in values.items()]

    tensors = list(body.constants.tensors.values())
    nodes = [*body.constants.casts, *body.nodes]
    graph = helper.make_graph(nodes, "network", ends(inputs), ends(outputs), tensors, title)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, producer_name="eiexport", producer_version=__version__, opset_imports=opset)
    model.ir_version = IR
    helper.set_model_props(model, facts(network, form) | metadata)
    return model


def facts(network: Network, form: Form) -> dict[str, str]:
    """What a user of the file has to know, and where it came from."""
    made = dict(network.graph.metadata.get("eiexport", {}).get("provenance", {}))
    classes = text(made.pop("classes", "[]"))
    return {
        "dt": repr(float(network.clock.dt)),
        "integrator": network.clock.integrator,
        "form": "integer" if form.whole else "float32",
        "latency": "0",
        "input": network.input,
        "input_values": str(network.alphabets[network.input]),
        "outputs": json.dumps({o: network.sources[o] for o in network.outputs}),
        "classes": classes,
        "provenance": json.dumps({k: text(v) for k, v in made.items()}, default=str),
    }


def verified(model: ModelProto) -> ModelProto:
    """The model, after onnx's own full check: types and shapes inferred. Raises TargetError."""
    if (size := model.ByteSize()) > MOST:
        raise TargetError(f"the model takes {size / 1e9:.1f} GB, and one ONNX file holds 2: train a narrower network")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise TargetError(f"onnx's checker refuses the model: {' '.join(str(e).split())[:300]}") from e
    return model
