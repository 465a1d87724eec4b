"""Runs any `.net` file in lava-dl's own netx on Lava: `run` outside of Lava's environment, `main` inside of it.

No file of the tools' is read here, and nothing is known of a network but what netx has built of it: this is the other
side that `eiexport.netfile` is held against.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]


class Run(NamedTuple):
    """A file and its input (sample, time, *neuron) as it arrives at netx, maps as (C, H, W); x None: only build it.

    apart: each sample in a network of its own. layers: netx's num_layers.
    """

    file: Path
    x: np.ndarray | None = None
    message_bits: int = 0
    layers: int | None = None
    apart: bool = False


class Ran(NamedTuple):
    """Of each layer with neurons z, u and v (sample, time, *neuron), shifted to the model's time; or netx's error."""

    layers: list[dict[str, np.ndarray]]
    error: str = ""


def run(runs: Sequence[Run]) -> list[Ran]:
    """One start of Lava for all of them."""
    from targets.lava import env
    from targets.lava.supervise import run_worker

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "runs").write_bytes(pickle.dumps([tuple(r) for r in runs]))
        places = [ROOT, ROOT / "tests", env.deep()]
        run_worker(env.python(), ["-m", "netx_runs", name], timeout=300, cwd=folder, pythonpath=places)
        return [Ran(*found) for found in pickle.loads((folder / "ran").read_bytes())]


def main() -> None:
    from targets.lava import compat

    compat.load()
    compat.widen()
    from targets.lava.netx import load

    hdf5 = load()
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.lif.models import PyLifModelBitAcc
    from lava.proc.lif.process import LIF, LIFReset

    from targets.lava.models import PyWatchedFixed, WatchedModel
    from targets.lava.processes.anchor import Anchor

    class Fed:
        """Before a LIF model: its bias is the input, as netx has it for an input layer with neurons."""

        def run_spk(self: Any) -> None:
            if "fed" in self.proc_params._parameters:
                rows, step = np.load(self.proc_params["fed"], mmap_mode="r"), self.time_step - 1
                self.bias_mant[:] = rows[step].T if step < len(rows) else 0
            super().run_spk()  # type: ignore[misc]

    class Reset(Fed, PyWatchedFixed): ...

    class Plain(Fed, WatchedModel, PyLifModelBitAcc): ...

    folder, anchor, found, total = Path(sys.argv[1]), Anchor(), [], 0
    for i, fields in enumerate(pickle.loads((folder / "runs").read_bytes())):
        asked = Run(*fields)
        parts = [None] if asked.x is None else list(asked.x[:, None]) if asked.apart else [asked.x]
        made: list[list[dict[str, Path]]] = []
        try:
            for j, x in enumerate(parts):
                made.append(_build(hdf5, folder / f"{i}.{j}", asked, x, anchor))
                total = max(total, 0 if x is None else x.shape[0] * x.shape[1] + len(made[-1]))
            found.append((made, ""))
        except Exception as e:  # whatever netx and Lava raise is what is asked for
            found.append(([], f"{type(e).__name__}: {e}"))
    if total:
        config = Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map={LIFReset: Reset, LIF: Plain})
        try:
            anchor.run(RunSteps(num_steps=total), config, {"pypy_channel_size": 1})
        finally:
            anchor.stop()
    runs = [Run(*fields) for fields in pickle.loads((folder / "runs").read_bytes())]
    told = [(_read(made, asked), error) for (made, error), asked in zip(found, runs, strict=True)]
    (folder / "ran").write_bytes(pickle.dumps(told))


def _build(hdf5: Any, place: Path, asked: Run, x: np.ndarray | None, anchor: Any) -> list[dict[str, Path]]:
    """A network, its input and what records it; x (sample, time, *neuron) with its samples one after another."""
    from targets.lava.processes.player import Player
    from targets.lava.processes.recorder import Recorder
    from targets.lava.watch import WATCH, Watched

    steps = None if x is None else x.shape[1]
    options: dict[str, Any] = {} if asked.layers is None else {"num_layers": asked.layers}
    first = hdf5.Network(str(asked.file), input_message_bits=asked.message_bits, **options)
    fed = type(first.layers[0]).__name__ == "Input"  # no hop before it
    if steps is not None:
        options |= {"reset_interval": steps, "reset_offset": 0 if fed else 1}
    built = hdf5.Network(str(asked.file), input_message_bits=asked.message_bits, **options) if options else first
    if x is None:
        return []
    rows = len(x) * x.shape[1]
    np.save(f"{place}.npy", x.reshape(rows, *x.shape[2:]).astype(np.int32))
    if fed:
        built.layers[0].neuron.proc_params["fed"] = f"{place}.npy"
        np.save(f"{place}.none.npy", np.zeros((1, *map(int, built.inp.shape)), np.int32))
        player = Player(f"{place}.none.npy")
        player.out.connect(built.layers[0].neuron.a_in)  # netx connects it to nothing
    else:
        player = Player(f"{place}.npy")
        turned = player.out.transpose((2, 1, 0)) if len(built.inp.shape) == 3 else player.out.flatten()
        turned.connect(built.inp)
    player.link.connect(anchor.links)
    made = []
    for n, block in enumerate(built.layers):
        shape = tuple(int(n) for n in block.neuron.s_out.shape)[::-1]  # NumPy integers break .npy headers
        late = n + (not fed)
        files = {kind: Path(f"{place}.{n}.{kind}.npy") for kind in "zuv"}
        for kind in "uv":
            np.lib.format.open_memmap(files[kind], "w+", np.dtype("int32"), (rows, *shape))
        watched = Watched({kind: str(files[kind]) for kind in "uv"}, late, True)
        block.neuron.proc_params[WATCH] = watched
        recorder = Recorder(files["z"], shape, rows, late, "int8")
        out = block.neuron.s_out
        (out.transpose((2, 1, 0)) if len(shape) == 3 else out).connect(recorder.inp)
        made.append(files)
    return made


def _read(made: list[list[dict[str, Path]]], asked: Run) -> list[dict[str, np.ndarray]]:
    if not made or not made[0] or asked.x is None:
        return []
    samples, steps = asked.x.shape[:2]
    layers = []
    for parts in zip(*made, strict=True):
        rows = {kind: np.concatenate([np.load(files[kind]) for files in parts]) for kind in "zuv"}
        layers.append({kind: a.reshape(samples, steps, *a.shape[1:]) for kind, a in rows.items()})
    return layers


if __name__ == "__main__":
    from targets.lava.guard import guard

    guard(main)
