"""lava-dl's network files read as graphs, against the real netx on Lava: spikes, membranes and currents, every bit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import test_netx
from netfiles import NETS, dense, write
from netx_runs import Ran, Run, run

from eiexport import graph as graphs
from eiexport import netfile, netlayers
from eiexport.alphabet import BINARY, interval
from eiexport.errors import GraphError
from eiexport.netfile import read_net
from eiexport.trace import Trace
from targets import base, lavadl
from targets.lava import env
from targets.loihi import Loihi
from targets.loihi.limits import UNLIMITED

STARTS = 5  # of Lava


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("nets")
    return {name: write(folder / f"{i}.net", net.layers) for i, (name, net) in enumerate(NETS.items())}


@pytest.fixture(scope="module")
def lava(files: dict[str, Path]) -> dict[str, Ran]:
    """What the real netx computes; a start of Lava costs more than its share with many processes."""
    runs = {n: Run(files[n], net.x, net.bits, None, net.apart) for n, net in NETS.items()}
    ran: dict[str, Ran] = {}
    for part in (list(runs)[k::STARTS] for k in range(STARTS)):
        ran |= zip(part, run([runs[n] for n in part]), strict=True)
    return ran


def read(name: str, file: Path) -> graphs.Network:
    graph, _ = read_net(file, NETS[name].bits or None)
    return graphs.check(graph, alphabet=NETS[name].alphabet)


def different(network: graphs.Network, trace: Trace, ran: Ran) -> list[str]:
    """What differs from Lava, layer by layer in their order; u of an input's neurons apart, which has none there."""
    names = sorted((n for n in network.graph.nodes if n.startswith("neuron")), key=lambda n: int(n[6:]))
    assert len(names) == len(ran.layers) and ran.error == ""
    found = []
    for name, layer in zip(names, ran.layers, strict=True):
        ours = {"z": trace.z[name]} | {k: trace.states[k][name] for k in trace.states}
        if name == "neuron0" and "input" in network.sources[name]:
            assert not layer.pop("u", np.zeros(1)).any()
            ours.pop("u", None)
        for kind, a in ours.items():
            assert a.shape == layer[kind].shape, (name, kind)
            found += [f"{kind} of {name}"] * (not np.array_equal(a, layer[kind]))
    return found


# --- the real netx


@pytest.mark.parametrize("name", NETS)
def test_the_graph_computes_what_netx_does(name: str, files: dict[str, Path], lava: dict[str, Ran]) -> None:
    network, x, ran = read(name, files[name]), NETS[name].x.astype(float), lava[name]
    trace = base.get("reference")().compile(network).run(x, probe=True)
    assert set(trace.states) == {"u", "v"}
    assert different(network, trace, ran) == []
    assert ran.layers[0]["z"].any()
    assert different(network, base.get("torch")().compile(network).run(x, probe=True), ran) == []


@pytest.mark.parametrize("name", NETS)
def test_loihi_computes_what_netx_does(name: str, files: dict[str, Path], lava: dict[str, Ran]) -> None:
    net, network = NETS[name], read(name, files[name])
    if net.refused:
        with pytest.raises(base.Unsupported, match=f"rule {net.refused} on loihi2"):
            Loihi().check(network)
    engine = Loihi(chip=UNLIMITED) if net.refused else Loihi()
    trace = engine.compile(network).run(net.x.astype(float), probe=True)
    assert set(trace.states) == {"u", "v"}
    assert different(network, trace, lava[name]) == []


def test_biases_of_netx_start_early(tmp_path: Path) -> None:
    """Which notes say, and the graph leaves out: spikes before a sample's first step come back through a loop."""
    weight = np.arange(-16, 16, 2).reshape(4, 4)
    loop = {"type": "dense_rec", "weight_rec": 10.0 * weight, "bias": [100.0, 0, 0, 0]}
    file, x = write(tmp_path / "model.net", [dense(weight) | loop]), np.ones((1, 3, 4))
    graph, notes = read_net(file)
    assert len(notes) == 3 and "positive biases" in notes[2]
    network = graphs.check(graph, alphabet=BINARY)
    trace = base.get("reference")().compile(network).run(x, probe=True)
    (ran,) = run([Run(file, x, apart=True)])
    early = ran.layers[0]["u"][0, 0] - trace.states["u"]["neuron0"][0, 0]
    assert early.tolist() == (640 * weight[:, 0]).tolist() and different(network, trace, ran)


def test_what_was_compared(lava: dict[str, Ran]) -> None:
    entries = sum(a.size for ran in lava.values() for layer in ran.layers for a in layer.values())
    last = [ran.layers[-1]["z"].any() for name, ran in lava.items() if "at the end" not in name and "reach" not in name]
    print(f"entries: {entries}")
    assert entries > 8000 and np.mean(last) > 0.9
    v = np.concatenate([layer["v"].ravel() for ran in lava.values() for layer in ran.layers])
    assert (v < 0).mean() > 0.1 and (v > 0).mean() > 0.1


@pytest.mark.parametrize("name", NETS)
def test_notes(name: str, files: dict[str, Path]) -> None:
    graph, notes = read_net(files[name], NETS[name].bits or None)
    hops = sum("weight" in layer and layer["type"] != "input" for layer in NETS[name].layers)
    assert f"latency {hops}" in notes[0] and "reset_interval" in notes[0]
    text = "\n".join(notes)
    assert all(part in text for part in NETS[name].notes), text
    assert NETS[name].notes or len(notes) == 1 + NETS[name].apart, text
    assert graphs.clock_of(graph).dt == 1 and all("\n" not in note for note in notes)


# --- our own files


@pytest.mark.parametrize("name", test_netx.CASES)
def test_what_we_write_reads_back(name: str, tmp_path: Path) -> None:
    """Weights, thresholds, decays and what is computed; biases come back in the neurons."""
    case = test_netx.CASES[name]
    network = case.network()
    lavadl.write(network, tmp_path / "model.net")
    graph, notes = read_net(tmp_path / "model.net")
    back = graphs.check(graph, alphabet=case.alphabet)
    assert back.shapes[back.input] == network.shapes[network.input] and not [n for n in notes if "other weights" in n]
    reference = base.get("reference")()
    mine, theirs = (reference.compile(n).run(case.x, probe=True) for n in (back, network))
    order = [link.neuron for link in lavadl.links(network)]
    names = [link.neuron for link in lavadl.links(back)]
    assert len(order) == len(names) and any(theirs.z[n].any() for n in order)
    for a, b in zip(names, order, strict=True):
        assert mine.z[a].shape == theirs.z[b].shape
        assert np.array_equal(mine.z[a], theirs.z[b]) and np.array_equal(mine.states["v"][a], theirs.states["v"][b])
    lavadl.write(back, tmp_path / "again.net")
    assert same_file(tmp_path / "model.net", tmp_path / "again.net")


def same_file(a: Path, b: Path) -> bool:
    """Two files with the same datasets and attributes."""

    def content(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
            return found | dict(file.attrs)

    one, two = content(a), content(b)
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


# --- files that come with lava-dl, and their outputs


@pytest.fixture(scope="module")
def published() -> Path:
    return env.deep() / "tests" / "lava" / "lib" / "dl" / "netx"


def test_the_network_of_lava_dl(published: Path) -> None:
    """tiny.net: an input with neurons and two convolutions; its output is published with it, from its third step on."""
    graph, notes = read_net(published / "tiny.net")
    held = np.load(published / "gts" / "tinynet" / "input_bias.npy").transpose(2, 1, 0)
    network = graphs.check(graph, alphabet=interval(0, held.max(), True))
    trace = base.get("reference")().compile(network).run(np.broadcast_to(held, (1, 16, *held.shape)).copy())
    wanted = np.moveaxis(np.load(published / "gts" / "tinynet" / "output.npy")[0], -1, 0)[1:]
    assert wanted.shape == (15, 36, 1, 1) and wanted.sum() > 80
    assert np.array_equal(trace.z["neuron2"][0, :15], wanted)
    assert "36 * x + 34" in notes[1] and "64 steps" in notes[2]


def test_the_delays_of_lava_dl(published: Path) -> None:
    """ntidigits.net: delays of up to 62 steps for each neuron of two layers; the average at its end is left out."""
    file = published / "gts" / "ntidigits" / "ntidigits.net"
    with pytest.raises(GraphError) as e:
        read_net(file)
    test_netx.one_line(e, "layer 5 (average)", "num_layers=5")
    graph, _ = read_net(file, layers=5)
    network = graphs.check(graph, alphabet=BINARY)
    steps = 120
    x = np.load(file.with_name("input.npy")).T[None, :steps, None, None]
    z = base.get("torch")().compile(network).run(x).z["neuron4"][0]
    wanted = np.load(file.with_name("output.npy")).T[4 : 4 + steps]  # which runs through netx's and its sink's hops
    assert z.shape == wanted.shape == (steps, 242) and wanted.sum() > 1000
    assert np.array_equal(z, wanted)


# --- a wrong reader is caught


MUTANTS: dict[str, tuple[ModuleType, str, str]] = {
    "iDecay is du": (netfile, 'p["iDecay"] - 1', 'p["iDecay"].clip(0, 4095)'),
    "vDecay is du too": (netfile, 'p["vDecay"], bias', 'p["vDecay"].clip(1) - 1, bias'),
    "biases are not shifted": (netfile, "bias, np.array(ALIGN))", "bias, np.array(ALIGN - 1))"),
    "biases do not wrap": (netfile, "(whole + MANTISSA) % (2 * MANTISSA) - MANTISSA", "whole"),
    "fractions round down": (netfile, "np.trunc(a)", "np.floor(a)"),
    "fractions of delays round": (netfile, "np.trunc(delay.astype", "np.rint(delay.astype"),
    "exponent off by one": (netfile, "-made.left, bits", "-made.left + 1, bits"),
    "exponent forgotten": (netfile, "-made.left, bits", "0, bits"),
    "a loop with delays has its exponent": (netfile, "            left = 0\n", "            left = words.left\n"),
    "the loop's weights set no exponent": (netfile, "words_of(np.hstack(parts))", "words_of(parts[0])"),
    "the loop takes two steps": (netfile, "delays, 1, name, name", "delays, 2, name, name"),
    "the loop is transposed": (netfile, "lava[1], delays, 1", "lava[1].T, delays, 1"),
    "delays of inputs for neurons": (netfile, "steps = steps[:, None]", "steps = steps[: shape[1]] * 0"),
    "longer delays": (netfile, "LONGEST = 62", "LONGEST = 71"),
    "delays share a shift": (netfile, "and not (words % (1 << left)).any()", ""),
    "clipped to 255": (netlayers, "LEAST, MOST = -256, 254", "LEAST, MOST = -256, 256"),
    "words not cut": (netlayers, "synapse_words(shifted, words.width, mode)", "shifted"),
    "one sign mode for all": (netlayers, "mode = sign_mode_of(shifted)", 'mode = "mixed"'),
    "no bit for the sign": (netlayers, "8 - left - (free - signed)", "8 - left - free"),
    "one bit less": (netlayers, "math.floor(math.log2(room)) + signed", "math.floor(math.log2(room)) + 2 * signed"),
    "the ninth bit is lost": (netfile, "yield words & 1,", "yield words & 0,"),
    "kernels turned": (
        netfile,
        "weight.astype(np.int32),\n            np.zeros",
        "weight[..., ::-1].astype(np.int32),\n            np.zeros",
    ),
    "height and width swapped": (
        netlayers,
        "np.broadcast_to(a.reshape(-1), 2))",
        "np.broadcast_to(a.reshape(-1), 2)[::-1])",
    ),
    "biases as (C, H, W)": (netfile, "a.transpose(2, 1, 0).copy()", "a.copy()"),
    "numbers of channels by column": (
        netfile,
        "*[1] * (len(shape) - 1)), shape)",
        "*[1] * (len(shape) - 1)).T, shape)",
    ),
    "odd kernels halved": (netfile, "weight, exponent = weight << 1, -1", "weight, exponent = weight, -1"),
    "default neurons keep their membrane": (netfile, '"vDecay": 4096', '"vDecay": 0'),
    "input neurons keep their current": (netfile, "du=np.array(4095))", "du=np.array(199))"),
    "graded input as spikes": (netfile, "words.width, self.message_bits)", "words.width, 0)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_reader_is_caught(
    name: str, files: dict[str, Path], lava: dict[str, Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutated, old, new = MUTANTS[name]
    modules: dict[str, ModuleType] = {}
    for module in (netlayers, netfile):
        source = Path(str(module.__file__)).read_text()
        if module is mutated:
            assert source.count(old) == 1
            source = source.replace(old, new)
        modules[module.__name__] = made = ModuleType(module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, made)
        exec(compile(source, module.__name__, "exec"), made.__dict__)
    reader = modules["eiexport.netfile"].read_net

    def caught(case: str) -> bool:
        net, run_ = NETS[case], Ran([dict(layer) for layer in lava[case].layers])
        try:
            network = graphs.check(reader(files[case], net.bits or None)[0], alphabet=net.alphabet)
            trace = base.get("reference")().compile(network).run(net.x.astype(float), probe=True)
        except (GraphError, ValueError, base.TargetError):
            return True
        return bool(different(network, trace, run_))

    assert any(caught(case) for case in NETS)
