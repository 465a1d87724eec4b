"""C out: one self-contained C99 file from the traced steps, compiled and run by the machine's compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from eiexport.files import writing
from eiexport.graph import Network
from eiexport.nodes import INTEGERS, PREPARE
from eiexport.trace import Trace
from targets.base import Claim, Program, Target, TargetError, check_input, recorded
from targets.c import build
from targets.c.emit import FLOAT_MAX, Source, source
from targets.traced import verify_names


class C(Target):
    """One C99 file without dependencies; whole numbers to the bit, floats in float32; writes model.c."""

    name = "c"
    dtype: ClassVar[str] = "float32"
    evidence = "shared-step"
    setup = build.SETUP
    options = ()
    claims: ClassVar[dict[str, Claim]] = {
        kind: Claim("exact", "reference") if kind in INTEGERS else Claim("approximate", "ties explained")
        for kind in PREPARE
    }

    @property
    def version(self) -> str:
        return build.version()

    def check(self, network: Network) -> None:
        """Rules: file_size, float32, int64 (every whole value is proven to fit), whole_sums and whole_values."""
        super().check(network)
        self._source(network)

    def compile(self, network: Network) -> Program:
        return CProgram(network, self._source(network))

    def emit(self, network: Network, out: Path) -> None:
        """Write model.c."""
        write(self._source(network), out / "model.c")

    def _source(self, network: Network) -> Source:
        if getattr(self, "_of", None) is not network:
            verify_names(network)
            self._of, self._made = network, source(network)
        return self._made


def write(made: Source, path: Path) -> None:
    """Write a file; it appears whole or not at all."""
    with writing(path) as sink:
        sink.write(made.text.encode())


class CProgram(Program):
    """The file, compiled; runs samples one by one. With `probe` a second one, which keeps registers nobody reads."""

    def __init__(self, network: Network, made: Source, library: build.Library | None = None) -> None:
        self.network, self.source = network, made
        self.latency = dict.fromkeys(network.recorded, 0)
        self._made = {False: (made, library or build.Library([made]))}

    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        check_input(self.network, x)
        probe = bool(probe)
        if probe not in self._made:
            made = source(self.network, probe=True)
            self._made[probe] = (made, build.Library([made]))
        made, library = self._made[probe]
        self._verify(made, x)
        held = library.run(made, x)
        z = {n: self._outward(n, held[s.name]) for n, s in made.outputs.items()}
        states: dict[str, dict[str, np.ndarray]] = {}
        for name in (n for component in self.network.order for n in component if probe):
            for kind in getattr(self.network.steps[name], "observed", ()):
                rows = held[made.states[f"{name}.{kind}"].name]
                states.setdefault(kind, {})[name] = _moved(rows, self.network.input_shape(name))
        return recorded(self.network, self.latency, z, states)

    def _outward(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(time, sample, *neuron); only spikes stay in the bytes in which C held them."""
        if self.network.alphabets[name].kind not in ("binary", "ternary"):
            rows = rows.astype(np.int64 if self.network.integer else np.float32)
        return _moved(rows, self.network.shapes[name])

    def _verify(self, made: Source, x: np.ndarray) -> None:
        if made.steps is not None and x.shape[1] > made.steps:
            raise TargetError(
                f"target 'c': a register may overflow after {made.steps:,} steps, the input has {x.shape[1]:,}; "
                "use a decay of the current, or a smaller weight_exp"
            )
        if made.given.kind == "float" and max(x.max(), -x.min()) > FLOAT_MAX:
            raise TargetError(
                f"target 'c' computes in float32, which holds no more than {FLOAT_MAX:.3g}; the input reaches "
                f"{max(x.max(), -x.min()):.3g}: scale it, or use target 'reference'"
            )
        r = made.range
        if self.network.integer and x.size and (x.min() < r.lo or x.max() > r.hi):
            raise TargetError(
                f"target 'c' was made for input in [{r.lo:.0f}, {r.hi:.0f}], it holds [{x.min():g}, {x.max():g}]; "
                "declare what the input holds"
            )


def _moved(rows: np.ndarray, shape: Any) -> np.ndarray:
    return np.swapaxes(rows.reshape(*rows.shape[:2], *shape), 0, 1)
