"""A network as a stream: one frame a call, its states carried outside, with onnxruntime and NumPy alone.

    eitrain fit --out runs/demo
    eiexport runs/demo --target onnx
    python examples/onnx_stream.py runs/demo/export

Takes frames of recorded samples as a sensor would send them, says after each step what the network has decided so far,
and holds the end against model.onnx, which takes the whole sequence at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import onnxruntime


class Stream:
    """model_step.onnx and its states; call it with one frame (batch, *neuron)."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path)
        said = self.session.get_modelmeta().custom_metadata_map
        self.input, self.output = said["input"], next(iter(json.loads(said["outputs"]).values()))[0]
        self.classes = json.loads(said["classes"])
        self.held = [i for i in self.session.get_inputs() if i.name != self.input]
        self.dtype = np.int32 if said["form"] == "integer" else np.float32
        self.reset()

    def reset(self, samples: int = 1) -> None:
        """Silence: what every sample begins with."""
        self.state = {i.name: np.zeros((samples, *i.shape[1:]), self.dtype) for i in self.held}

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        names = [self.output, *(f"{n}_next" for n in self.state)]
        sent, *state = self.session.run(names, {self.input: frame.astype(self.dtype), **self.state})
        self.state = dict(zip(self.state, state, strict=True))
        return sent


def main(folder: Path, samples: int = 5) -> bool:
    """Streams samples one after the other; True where all of them end as the whole sequence does."""
    stream = Stream(folder / "model_step.onnx")
    whole = onnxruntime.InferenceSession(folder / "model.onnx")
    shape = next(i for i in stream.session.get_inputs() if i.name == stream.input).shape[1:]
    with h5py.File(folder / "input.h5") as file:  # what the export fed to every engine, neurons flattened
        data = file[f"nodes/{stream.input}/observables/z/data"][:samples]
    x = data.reshape(*data.shape[:2], *shape).astype(stream.dtype)
    (expected,) = whole.run([stream.output], {stream.input: x})
    same = True
    for k, sample in enumerate(x):
        stream.reset()
        counts, rows, said = 0.0, [], []
        for frame in sample:
            rows.append(stream(frame[None])[0])
            counts = counts + rows[-1]
            best = int(np.argmax(counts))
            said.append((stream.classes or range(counts.size))[best] if np.any(counts) else "-")
        equal = np.array_equal(np.stack(rows), expected[k])
        same = same and equal
        print(f"sample {k}: {' '.join(map(str, said))}   {'as' if equal else 'NOT as'} the whole sequence")
    return same


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "model_step.onnx").is_file():
        sys.exit("give the folder of an export with --target onnx, for example runs/demo/export")
    sys.exit(0 if main(Path(sys.argv[1])) else "the stream and the whole sequence differ")
