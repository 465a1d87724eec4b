"""ONNX files and onnxruntime: the network as one time step with its states outside, and as a whole sequence."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from eiexport.files import replacing
from eiexport.graph import Network
from eiexport.integers import IntFire, IntGatedFire
from eiexport.neurons import Delay, Threshold
from eiexport.nodes import INTEGERS, PREPARE
from eiexport.steps import Neuron
from eiexport.trace import Trace
from targets.base import Claim, Program, Target, TargetError, Unsupported, check_input, recorded
from targets.loop import States
from targets.onnx.model import Form, sequence_model, step_model, verified
from targets.traced import verify_names

OrtFail = (ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.NotImplemented, ort.RuntimeException)
WHOLE = (IntFire, IntGatedFire, Delay, Threshold)  # what holds or sends whole numbers, where it gets them


class Onnx(Target):
    """onnxruntime, the whole sequence in one call (model.onnx); float32, or the integers themselves."""

    name = "onnx"
    dtype = "float32"
    claims: ClassVar[dict[str, Claim]] = {
        kind: Claim("exact", "reference") if kind in INTEGERS else Claim("approximate", "ties explained")
        for kind in PREPARE
    }
    file: ClassVar[str] = "model.onnx"

    @property
    def version(self) -> str:
        return f"onnxruntime {onnxruntime.__version__} cpu"

    def check(self, network: Network) -> None:
        super().check(network)
        verify_names(network)
        if not network.recorded:
            raise Unsupported("no node is recorded, so a file of this network would have nothing to give")
        for name in network.recorded if network.integer else ():
            step, a = network.steps[name], network.alphabets[name]
            real = a.kind == "real" and np.isfinite(a.hi - a.lo)  # without a limit its input is not known yet
            if real or (isinstance(step, Neuron) and not isinstance(step, WHOLE)):
                kind = type(network.graph.nodes[name]).__name__
                raise Unsupported(
                    f"node {name!r} ({kind}): rule whole_values: it sends fractions, and the model of an integer "
                    "network gives whole numbers; quantise it too"
                )

    def model(self, network: Network) -> ModelProto:
        """The checked model that `emit` writes."""
        return verified(sequence_model(network))

    def compile(self, network: Network) -> Program:
        return _Sequence(network, self.model(network))

    def emit(self, network: Network, out: Path) -> None:
        with replacing(out / self.file) as path:
            onnx.save_model(self.model(network), path)


class OnnxStep(Onnx):
    """onnxruntime, one time step a call with the states outside (model_step.onnx), as streaming needs it."""

    name = "onnx-step"
    file = "model_step.onnx"

    def model(self, network: Network) -> ModelProto:
        return verified(step_model(network))

    def compile(self, network: Network) -> Program:
        return _Step(network, self.model(network))


def session(model: ModelProto) -> onnxruntime.InferenceSession:
    """The model in onnxruntime on the CPU, with as many threads as OMP_NUM_THREADS says."""
    options = onnxruntime.SessionOptions()
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP takes a list, by nesting
    options.intra_op_num_threads = int(first) if first.isdecimal() else 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (*OrtFail, RuntimeError) as e:
        raise TargetError(f"onnxruntime refuses the model: {' '.join(str(e).split())[:300]}") from e


class _Runs(Program):
    def __init__(self, network: Network, model: ModelProto) -> None:
        self.network, self.form = network, Form(network)
        self.latency = dict.fromkeys(network.recorded, 0)
        self.session = session(model)

    def enter(self, x: np.ndarray) -> np.ndarray:
        check_input(self.network, x)
        dtype = self.form.outside(self.network.input)
        most = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
        if (top := np.abs(x, dtype=np.float64).max()) > most:
            raise TargetError(f"the input holds {top:g}, and the model takes {dtype}; scale it")
        return np.ascontiguousarray(x, dtype)

    def call(self, file: onnxruntime.InferenceSession, names: list[str], given: dict[str, np.ndarray]) -> list[Any]:
        try:
            return file.run(names, given)
        except OrtFail as e:
            raise TargetError(f"onnxruntime failed: {' '.join(str(e).split())[:300]}") from e

    def leave(self, z: dict[str, np.ndarray], states: States) -> Trace:
        turned = {k: {n: np.swapaxes(a, 0, 1) for n, a in rows.items()} for k, rows in states.items()}
        return recorded(self.network, self.latency, {n: np.swapaxes(a, 0, 1) for n, a in z.items()}, turned)


class _Sequence(_Runs):
    @cached_property
    def probed(self) -> onnxruntime.InferenceSession:
        """The same model with the registers as outputs."""
        return session(verified(sequence_model(self.network, probe=True)))

    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        given, names = {self.network.input: self.enter(x)}, list(self.network.recorded)
        z = dict(zip(names, self.call(self.session, names, given), strict=True))
        states: States = {}
        if probe:
            names = [o.name for o in self.probed.get_outputs()]
            for name, found in zip(names, self.call(self.probed, names, given), strict=True):
                if name in z and not np.array_equal(z[name], found):
                    raise TargetError(f"node {name!r}: the model with registers differs from the one without")
                if name not in z:
                    node, _, register = name.rpartition(".")
                    states.setdefault(register, {})[node] = found
        return self.leave(z, states)


class _Step(_Runs):
    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        entered = self.enter(x)
        held = [i for i in self.session.get_inputs() if i.name != self.network.input]
        state = {i.name: np.zeros((len(x), *i.shape[1:]), self.form.outside(i.name)) for i in held}
        names = [o.name for o in self.session.get_outputs()]
        rows: dict[str, list[np.ndarray]] = {n: [] for n in names}
        for t in range(x.shape[1]):
            found = self.call(self.session, names, {self.network.input: entered[:, t], **state})
            for name, value in zip(names, found, strict=True):
                rows[name].append(value)
            state = {n: rows[f"{n}_next"][-1] for n in state}
        z = {n: np.stack(rows[n], 1) for n in self.network.recorded}
        states: States = {}
        for name in self.network.recorded if probe else ():
            for register in getattr(self.network.steps[name], "observed", ()):
                states.setdefault(register, {})[name] = np.stack(rows[f"{name}.{register}_next"], 1)
        return self.leave(z, states)
