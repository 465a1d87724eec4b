"""ONNX files and onnxruntime: the network as one time step with its states outside, and as a whole sequence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto

from eiexport.files import replacing
from eiexport.graph import Network
from eiexport.nodes import INTEGERS, PREPARE
from eiexport.trace import Trace
from targets.base import Claim, Program, Target, TargetError, check_input, recorded
from targets.loop import States
from targets.onnx.model import Form, sequence_model, step_model, verified
from targets.traced import verify_names

MOST = 2_000_000_000  # bytes in one protobuf file


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
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if (size := model.ByteSize()) > MOST:
        raise TargetError(f"the model takes {size / 1e9:.1f} GB, and one ONNX file holds 2: train a narrower network")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class _Runs(Program):
    def __init__(self, network: Network, model: ModelProto) -> None:
        self.network, self.form = network, Form(network)
        self.latency = dict.fromkeys(network.recorded, 0)
        self.session = session(model)

    def enter(self, x: np.ndarray) -> np.ndarray:
        check_input(self.network, x)
        if self.form.whole and np.abs(x).max() >= 1 << 31:
            raise TargetError(f"the input holds {np.abs(x).max():g}, and the model takes 32-bit integers")
        return np.ascontiguousarray(x, self.form.outside)

    def leave(self, z: dict[str, np.ndarray], states: States) -> Trace:
        turned = {k: {n: np.swapaxes(a, 0, 1) for n, a in rows.items()} for k, rows in states.items()}
        return recorded(self.network, self.latency, {n: np.swapaxes(a, 0, 1) for n, a in z.items()}, turned)


class _Sequence(_Runs):
    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        given = {self.network.input: self.enter(x)}
        z = dict(zip(self.network.recorded, self.session.run(list(self.network.recorded), given), strict=True))
        states: States = {}
        if probe:
            seen = session(verified(sequence_model(self.network, probe=True)))
            names = [o.name for o in seen.get_outputs()]
            found = dict(zip(names, seen.run(names, given), strict=True))
            for name in names:
                if name in z and not np.array_equal(z[name], found[name]):
                    raise TargetError(f"node {name!r}: the model with registers differs from the one without")
                if name not in z:
                    node, _, register = name.rpartition(".")
                    states.setdefault(register, {})[node] = found[name]
        return self.leave(z, states)


class _Step(_Runs):
    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        entered = self.enter(x)
        held = [i for i in self.session.get_inputs() if i.name != self.network.input]
        state = {i.name: np.zeros((len(x), *i.shape[1:]), self.form.outside) for i in held}
        names = [o.name for o in self.session.get_outputs()]
        rows: dict[str, list[np.ndarray]] = {n: [] for n in names}
        for t in range(x.shape[1]):
            # a state that does not depend on what was is no input of the model
            found = self.session.run(names, {self.network.input: entered[:, t], **state})
            for name, value in zip(names, found, strict=True):
                rows[name].append(value)
            state = {n: rows[f"{n}_next"][-1] for n in state}
        z = {n: np.stack(rows[n], 1) for n in self.network.recorded}
        states: States = {}
        for name in self.network.recorded if probe else ():
            for register in getattr(self.network.steps[name], "observed", ()):
                states.setdefault(register, {})[name] = np.stack(rows[f"{name}.{register}_next"], 1)
        return self.leave(z, states)
