"""Networks written by other tools' own exporters, with the output that the tool itself gives on a recorded input.

    python tests/foreign/make.py TOOL FOLDER

in an environment that has the tool (versions: README.md). Writes FOLDER/TOOL-NAME.nir and FOLDER/TOOL-NAME.npz: `x`,
`z` (sample, time, *neuron) what went in and came out, `tool` and `nir` the versions, `dt` the step that the exporter
assumes ("" where it says none). What an exporter or a tool cannot do is printed, and no file is left behind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch

T, SAMPLES = 20, 2
Run = Callable[[torch.Tensor], torch.Tensor]  # (sample, time, *neuron) -> the same
Made = tuple[
    str, Any, Callable[[], nir.NIRGraph], Run, tuple[int, ...], Any
]  # name, network, export, how to run it, input shape, dt


def spikes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Half of the samples with few spikes, half with many."""
    rng = np.random.default_rng(seed)
    rate = np.linspace(0.2, 0.6, SAMPLES).reshape(-1, *[1] * (len(shape) + 1))
    return (rng.random((SAMPLES, T, *shape)) < rate).astype(np.float32)


def dyadic(net: torch.nn.Module, seed: int, positive: float = 0.25) -> torch.nn.Module:
    """Weights of multiples of 1/8, so that float32 sums are exact in any order and thresholds are hit."""
    rng = np.random.default_rng(seed)
    for part in net.modules():
        for name in ("weight", "bias"):
            if isinstance(getattr(part, name, None), torch.Tensor) and not type(part).__module__.endswith("neuron"):
                a = getattr(part, name)
                values = np.rint(rng.normal(positive, 0.6, tuple(a.shape)) * 8) / 8
                a.data = torch.tensor(values, dtype=a.dtype)
    return net


# --- snnTorch


class Kept(torch.nn.Module):
    """A snnTorch neuron that gives its state back, which is kept here: RSynaptic(init_hidden=True) does not run."""

    def __init__(self, neuron: Any) -> None:
        super().__init__()
        self.neuron, self.state = neuron, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.state is None:
            self.state = [torch.zeros_like(x) for _ in range(3)]
        self.state = list(self.neuron(x, *self.state))
        return self.state[0]


def snntorch() -> Iterator[Made]:
    import snntorch as snn
    from snntorch.export_nir import export_to_nir
    from torch import nn

    def run(net: Any) -> Run:
        def forward(x: torch.Tensor) -> torch.Tensor:
            from snntorch import utils

            utils.reset(net)
            for part in net.modules():
                if isinstance(part, Kept):
                    part.state = None
            rows = []
            for t in range(x.shape[1]):
                y = net(x[:, t])
                rows.append(y[0] if isinstance(y, tuple) else y)
            return torch.stack(rows, 1)

        return forward

    one = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}

    def leaky(n: int, beta: float = 0.5, threshold: float = 1.0, **more: Any) -> Any:
        return snn.Leaky(beta=torch.full((n,), beta), threshold=torch.full((n,), threshold), **{**one, **more})

    def synaptic(n: int, **more: Any) -> Any:
        full = [torch.full((n,), v) for v in (0.5, 0.75, 1.5)]
        return snn.Synaptic(alpha=full[0], beta=full[1], threshold=full[2], **{**one, **more})

    nets: dict[str, tuple[Any, tuple[int, ...]]] = {
        "leaky": (nn.Sequential(nn.Linear(5, 6), leaky(6), nn.Linear(6, 4), leaky(4, 0.75, 1.5)), (5,)),
        "leaky-scalar": (nn.Sequential(nn.Linear(5, 4), snn.Leaky(beta=0.5, **one)), (5,)),
        "leaky-subtract": (nn.Sequential(nn.Linear(5, 4), leaky(4, reset_mechanism="subtract")), (5,)),
        "leaky-late-reset": (nn.Sequential(nn.Linear(5, 4), leaky(4, reset_delay=True)), (5,)),
        "synaptic": (nn.Sequential(nn.Linear(5, 6), synaptic(6), nn.Linear(6, 4, bias=False), leaky(4)), (5,)),
        "conv": (
            nn.Sequential(
                nn.Conv2d(1, 2, 3, padding=1),
                snn.Leaky(beta=torch.full((2, 4, 4), 0.5), threshold=torch.ones(2, 4, 4), **one),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(8, 3),
                leaky(3),
            ),
            (1, 4, 4),
        ),
        "rleaky": (
            nn.Sequential(
                nn.Linear(5, 4),
                snn.RLeaky(
                    beta=torch.full((4,), 0.5), threshold=torch.ones(4), all_to_all=True, linear_features=4, **one
                ),
            ),
            (5,),
        ),
        "rleaky-one-to-one": (
            nn.Sequential(
                nn.Linear(5, 4),
                snn.RLeaky(
                    beta=torch.full((4,), 0.5),
                    threshold=torch.ones(4),
                    V=torch.tensor([-0.5, 0.25, -0.25, 0.5]),
                    all_to_all=False,
                    **one,
                ),
            ),
            (5,),
        ),
        "rsynaptic": (
            nn.Sequential(
                nn.Linear(5, 4),
                Kept(
                    snn.RSynaptic(
                        alpha=torch.full((4,), 0.5),
                        beta=torch.full((4,), 0.75),
                        threshold=torch.full((4,), 1.5),
                        all_to_all=True,
                        linear_features=4,
                        **{**one, "init_hidden": False},
                    )
                ),
                nn.Linear(4, 2),
                leaky(2),
            ),
            (5,),
        ),
    }
    for name, (net, shape) in nets.items():
        dyadic(net, len(name))
        yield (
            name,
            net,
            lambda n=net, s=shape: export_to_nir(n, torch.zeros(1, *s), ignore_dims=[0]),
            run(net),
            shape,
            1e-4,
        )


# --- Norse


def norse() -> Iterator[Made]:
    import norse.torch as nt
    from torch import nn

    p = nt.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.5))

    def box(n: Any, v_leak: float = 0.0, v_reset: float = 0.0) -> Any:
        values = {"tau_mem_inv": 500.0, "v_th": 0.5, "v_leak": v_leak, "v_reset": v_reset}
        return nt.LIFBoxCell(
            nt.LIFBoxParameters(**{k: torch.full(n if isinstance(n, tuple) else (n,), v) for k, v in values.items()}),
            dt=0.001,
        )

    def iaf(n: int) -> Any:
        return nt.IAFCell(nt.IAFParameters(v_th=torch.full((n,), 1.0)))

    def run(net: Any) -> Run:
        def forward(x: torch.Tensor) -> torch.Tensor:
            rows, state = [], None
            for t in range(x.shape[1]):
                y, state = net(x[:, t], state)
                rows.append(y)
            return torch.stack(rows, 1)

        return forward

    assert p is not None
    S = nt.SequentialState
    nets: dict[str, tuple[Any, tuple[int, ...]]] = {
        "lif": (S(nn.Linear(5, 6), box(6), nn.Linear(6, 4, bias=False), box(4)), (5,)),
        "lif-leak-reset": (S(nn.Linear(5, 4), box(4, 0.125, -0.25)), (5,)),
        "lif-scalar": (S(nn.Linear(5, 4), nt.LIFBoxCell(p, dt=0.001)), (5,)),
        "if": (S(nn.Linear(5, 6), iaf(6), nn.Linear(6, 4), iaf(4)), (5,)),
        "li": (S(nn.Linear(5, 4), box(4), nn.Linear(4, 2), nt.LIBoxCell(dt=0.001)), (5,)),
        "lifcell": (S(nn.Linear(5, 4), nt.LIFCell(dt=0.001)), (5,)),
        "conv": (S(nn.Conv2d(1, 2, 3, padding=1), box((2, 4, 4))), (1, 4, 4)),
        "conv-flatten": (
            S(nn.Conv2d(1, 2, 3, padding=1), box((2, 4, 4)), nn.Flatten(), nn.Linear(32, 3), box(3)),
            (1, 4, 4),
        ),
        "recurrent": (
            S(
                nn.Linear(5, 4),
                nt.RecurrentSequential(box(4), nn.Linear(4, 4), output_modules=0),
                nn.Linear(4, 2),
                box(2),
            ),
            (5,),
        ),
    }
    for name, (net, shape) in nets.items():
        dyadic(net, len(name))
        yield name, net, lambda n=net, s=shape: nt.to_nir(n, torch.zeros(1, *s), dt=0.001), run(net), shape, 1e-3


# --- spikingjelly


def spikingjelly() -> Iterator[Made]:
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir
    from torch import nn

    def run(net: Any) -> Run:
        def forward(x: torch.Tensor) -> torch.Tensor:
            functional.reset_net(net)
            return torch.stack([net(x[:, t]) for t in range(x.shape[1])], 1)

        return forward

    def cuba() -> Any:
        return neuron.CUBALIFNode(c_decay=0.5, v_decay=0.75, v_threshold=1.5, v_reset=0.0)

    nets: dict[str, tuple[Any, tuple[int, ...]]] = {
        "if": (nn.Sequential(layer.Linear(5, 6), neuron.IFNode(), layer.Linear(6, 4), neuron.IFNode(1.5)), (5,)),
        "lif": (nn.Sequential(layer.Linear(5, 6), neuron.LIFNode(2.0), layer.Linear(6, 4), neuron.LIFNode(4.0)), (5,)),
        "lif-no-decay-input": (
            nn.Sequential(layer.Linear(5, 4), neuron.LIFNode(2.0, decay_input=False, v_reset=-0.25)),
            (5,),
        ),
        "cuba": (nn.Sequential(layer.Linear(5, 6), cuba(), layer.Linear(6, 4, bias=False), cuba()), (5,)),
        "conv": (
            nn.Sequential(
                layer.Conv2d(2, 3, 3, stride=1, padding=1),
                neuron.LIFNode(2.0, v_threshold=0.5),
                layer.AvgPool2d(2),
                layer.Flatten(),
                layer.Linear(12, 3),
                neuron.IFNode(),
            ),
            (2, 4, 4),
        ),
        "conv-wide": (
            nn.Sequential(layer.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), neuron.IFNode()),
            (2, 4, 5),
        ),
        "conv-stride": (
            nn.Sequential(
                layer.Conv2d(2, 3, 3, stride=2, padding=1, dilation=1, bias=False),
                neuron.IFNode(),
                layer.Conv2d(3, 2, 2),
                neuron.LIFNode(),
            ),
            (2, 5, 5),
        ),
        "conv1d": (
            nn.Sequential(
                layer.Conv1d(2, 3, 3, padding=1, bias=False),
                neuron.IFNode(),
                layer.Flatten(),
                layer.Linear(15, 2),
                neuron.IFNode(),
            ),
            (2, 5),
        ),
        "residual": (Residual(layer.Linear(5, 5), neuron.IFNode(), layer.Linear(5, 5), neuron.IFNode()), (5,)),
    }
    for name, (net, shape) in nets.items():
        dyadic(net, len(name))
        yield name, net, lambda n=net, s=shape: export_to_nir(n, torch.zeros(1, *s), dt=1e-4), run(net), shape, 1e-4


class Residual(torch.nn.Module):
    """Two layers, the first also straight into the second's neuron."""

    def __init__(self, a: Any, f: Any, b: Any, g: Any) -> None:
        super().__init__()
        self.a, self.f, self.b, self.g = a, f, b, g

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.f(self.a(x))
        return self.g(self.b(s) + s)


# --- sinabs


def sinabs() -> Iterator[Made]:
    import sinabs.layers as sl
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.nir import to_nir
    from torch import nn

    hard = {"reset_fn": MembraneReset(), "spike_fn": SingleSpike}

    def run(net: Any) -> Run:
        def forward(x: torch.Tensor) -> torch.Tensor:
            for part in net.modules():
                if hasattr(part, "reset_states"):
                    part.reset_states()
            return torch.as_tensor(net(x.reshape(-1, *x.shape[2:]))).reshape(*x.shape[:2], -1)

        return forward

    def lif(n: int, tau: float = 2.0, threshold: float = 1.0, **more: Any) -> Any:
        a = torch.full((n,), tau)
        return sl.LIFSqueeze(
            tau_mem=a, spike_threshold=torch.full((n,), threshold), batch_size=SAMPLES, norm_input=False, **more
        )

    nets: dict[str, tuple[Any, tuple[int, ...]]] = {
        "iaf": (
            nn.Sequential(
                nn.Linear(5, 6), sl.IAFSqueeze(batch_size=SAMPLES), nn.Linear(6, 4), sl.IAFSqueeze(batch_size=SAMPLES)
            ),
            (5,),
        ),
        "iaf-hard": (nn.Sequential(nn.Linear(5, 4), sl.IAFSqueeze(batch_size=SAMPLES, **hard)), (5,)),
        "lif": (nn.Sequential(nn.Linear(5, 6), lif(6), nn.Linear(6, 4, bias=False), lif(4)), (5,)),
        "lif-hard": (nn.Sequential(nn.Linear(5, 4), lif(4, **hard)), (5,)),
        "lif-scalar": (
            nn.Sequential(nn.Linear(5, 4), sl.LIFSqueeze(tau_mem=2.0, batch_size=SAMPLES, norm_input=False)),
            (5,),
        ),
        "expleak": (
            nn.Sequential(
                nn.Linear(5, 4),
                lif(4),
                nn.Linear(4, 2),
                sl.ExpLeakSqueeze(tau_mem=torch.full((2,), 2.0), batch_size=SAMPLES, norm_input=False),
            ),
            (5,),
        ),
        "conv": (
            nn.Sequential(
                nn.Conv2d(2, 3, 3, padding=1, bias=False),
                sl.IAFSqueeze(batch_size=SAMPLES),
                sl.SumPool2d(2),
                nn.Flatten(),
                nn.Linear(12, 3),
                sl.IAFSqueeze(batch_size=SAMPLES),
            ),
            (2, 4, 4),
        ),
    }
    for name, (net, shape) in nets.items():
        dyadic(net, len(name))
        sample = torch.zeros(SAMPLES * T, *shape)
        run(net)(sample.reshape(SAMPLES, T, *shape))  # its exporter reads the shapes from a state
        yield name, net, lambda n=net, s=sample: to_nir(n, s), run(net), shape, 1.0


# --- rockpool


def rockpool() -> Iterator[Made]:
    from rockpool.nn.combinators import Sequential
    from rockpool.nn.modules import ExpSynTorch, LIFNeuronTorch, LIFTorch, LinearTorch
    from rockpool.nn.modules.torch.nir import to_nir

    dt = 1e-3

    def run(net: Any) -> Run:
        def forward(x: torch.Tensor) -> torch.Tensor:
            net.reset_state()
            return net(x)[0]

        return forward

    def lif(n: int, **more: Any) -> Any:
        return LIFTorch(
            n, tau_mem=torch.full((n,), 8e-3), tau_syn=torch.full((n,), 4e-3), dt=dt, bias=torch.zeros(n), **more
        )

    nets: dict[str, tuple[Any, tuple[int, ...]]] = {
        "lif": (Sequential(LinearTorch((5, 6)), lif(6), LinearTorch((6, 4), has_bias=True), lif(4)), (5,)),
        "lif-recurrent": (
            Sequential(LinearTorch((5, 4)), lif(4, has_rec=True, w_rec=torch.eye(4).roll(1, 0) / 8)),
            (5,),
        ),
        "lifneuron": (
            Sequential(
                LinearTorch((5, 4)), LIFNeuronTorch(4, tau_mem=torch.full((4,), 8e-3), bias=torch.zeros(4), dt=dt)
            ),
            (5,),
        ),
        "expsyn": (Sequential(LinearTorch((5, 4)), lif(4), LinearTorch((4, 2)), ExpSynTorch(2, tau=4e-3, dt=dt)), (5,)),
    }
    for name, (net, shape) in nets.items():
        dyadic(net, len(name))
        yield name, net, lambda n=net, s=shape: to_nir(n, torch.zeros(1, T, *s)), run(net), shape, dt


TOOLS: dict[str, Callable[[], Iterator[Any]]] = {
    f.__name__: f for f in (snntorch, norse, spikingjelly, sinabs, rockpool)
}


def main(tool: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, net, export, run, shape, dt in TOOLS[tool]():
        path = folder / f"{tool}-{name}.nir"
        x = spikes(shape, len(name))
        try:
            with torch.no_grad():
                z = np.asarray(run(torch.from_numpy(x)).detach())
        except Exception as e:
            print(f"{tool}-{name}: does not run: {type(e).__name__}: {' '.join(str(e).split())[:150]}")
            continue
        try:
            for p in torch.nn.Module.parameters(net):  # rockpool's own `parameters` gives names
                p.requires_grad_(False)
            graph = export()
            try:
                nir.write(path, graph)
            except TypeError:  # fields that were left None
                graph.infer_types()
                nir.write(path, graph)
        except Exception as e:
            path.unlink(missing_ok=True)
            print(f"{tool}-{name}: not exported: {type(e).__name__}: {' '.join(str(e).split())[:150]}")
            continue
        np.savez_compressed(path.with_suffix(".npz"), x=x, z=z, dt=dt, tool=version(tool), nir=version("nir"))
        print(f"{tool}-{name}: {x.shape} -> {z.shape}, {z.mean():.3f}, values {np.unique(z)[:5]}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
