"""Network files as lava-dl's slayer exports them, written with h5py alone: layers, and files with their input."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from eiexport.alphabet import BINARY, Alphabet, interval
from eiexport.ops import Ints

T = 8
Layers = list[dict[str, Any]]


def cell(**fields: Any) -> dict[str, Any]:
    """Neurons without memory but that of their membrane, as slayer writes them."""
    cuba = {"type": "CUBA", "iDecay": 4096, "vDecay": 128, "vThMant": 80, "refDelay": 1, "gradedSpike": False}
    return cuba | fields


def dense(weight: Any, neuron: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    weight = np.asarray(weight, np.float32)
    shape = np.array([fields.pop("outputs", len(weight))])
    return {"type": "dense", "shape": shape, "weight": weight, "neuron": neuron or cell(), **fields}


def conv(weight: np.ndarray, shape: Ints, **fields: Any) -> dict[str, Any]:
    geometry = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    found = {"type": "conv", "shape": np.array(shape), "weight": weight.astype(np.float32), "neuron": cell()}
    return found | geometry | fields


def given(*shape: int, **fields: Any) -> dict[str, Any]:
    return {"type": "input", "shape": np.array(shape), **fields}


FLAT = {"type": "flatten", "shape": np.array([1, 1, 1])}


def write(path: Path, layers: Layers) -> Path:
    with h5py.File(path, "w") as file:
        for i, layer in enumerate(layers):
            group = file.create_group(f"layer/{i}")
            for name, value in layer.items():
                if name == "type":
                    group.create_dataset("type", (1,), "S10", [value.encode()])
                elif name == "neuron":
                    for key, number in value.items():
                        group.create_dataset(f"neuron/{key}", data=number)
                else:
                    group.create_dataset(name, data=value)
    return path


class Net(NamedTuple):
    """A file, its input, and what its reader says. refused: the rule of the chip that the network breaks."""

    layers: Layers
    x: np.ndarray
    alphabet: Alphabet = BINARY
    bits: int = 0
    apart: bool = False
    refused: str = ""
    notes: tuple[str, ...] = ()


def nets() -> dict[str, Net]:
    rng = np.random.default_rng(80)
    found: dict[str, Net] = {}

    def even(*shape: int, lo: int = -60, hi: int = 80) -> np.ndarray:
        """Slayer's weights: even whole numbers, both ends among them."""
        weight = 2 * rng.integers(lo // 2, hi // 2 + 1, shape)
        weight.flat[0], weight.flat[-1] = lo, hi
        return weight

    def spikes(*shape: int, lo: int = 0, hi: int = 1, samples: int = 2, steps: int = T) -> np.ndarray:
        """The last sample is silent, as far as there is more than one."""
        x = rng.integers(lo, hi + 1, (samples, steps, *shape))
        x[1:][-1:] = 0
        return x

    memory = cell(iDecay=1024, vDecay=300, vThMant=50)
    layers = [
        dense(even(4, 5), memory, bias=[3.0, -5, 40, 0]),
        dense(even(3, 4), cell(iDecay=0, vDecay=1000), bias=[9.0]),
    ]
    found["dense chain"] = Net([given(5), *layers, dense(even(2, 3), cell(vDecay=4096))], spikes(5))
    small = dense(rng.integers(-1, 3, (4, 5)), cell(vThMant=2, vDecay=0))
    found["small maxima"] = Net([small, dense(even(3, 4, lo=-2, hi=2), cell(vThMant=1))], spikes(5))
    large = rng.integers(-201, 254, (4, 5)) | 1
    large[0, :2] = -255, 253
    found["large odd weights of both signs"] = Net([given(5), dense(large, cell(vThMant=200))], spikes(5))
    up, down = rng.integers(1, 256, (4, 5)), -rng.integers(1, 256, (4, 5))
    up[0, 0], down[0, 0] = 255, -255
    layers = [
        given(5),
        dense(up, cell(vThMant=300)),
        dense(-even(3, 4, lo=2, hi=200), cell(vThMant=3, vDecay=0), bias=[60.0]),
    ]
    found["one sign"] = Net(layers, spikes(5))
    found["inhibition alone"] = Net(
        [given(5), dense(down, cell(vThMant=-700, vDecay=500))], spikes(5), refused="vth_fits"
    )
    lost = dense(np.where(down % 2, -128, -64), cell(vThMant=-300, vDecay=0))
    found["weights that netx corrupts"] = Net(
        [given(5), lost], spikes(5), refused="vth_fits", notes=("-128 becomes -64", "-256", "so does this graph")
    )
    found["weights that netx clips"] = Net(
        [given(5), dense(even(4, 5, lo=-400, hi=300))],
        spikes(5),
        notes=("clips its weights of -400 to 300 to -256..254",),
    )
    exact = dense(np.array([[40, 40, 0], [80, 0, -2], [78, 2, 0], [-40, 40, 82]]), cell(vDecay=0, vThMant=80))
    hits = spikes(3, samples=3)
    hits[0, :3] = [1, 1, 0], [0, 0, 0], [1, 0, 1]
    found["thresholds hit exactly"] = Net([given(3), exact], hits)
    found["one step"] = Net(
        [given(5), dense(even(4, 5)), dense(even(3, 4), bias=[90.0, 0, 0])], spikes(5, steps=1, samples=6)
    )
    vectors = cell(
        iDecay=np.array([4096, 500, 100, 1]), vDecay=np.array([0, 9, 4000, 300]), vThMant=np.array([9, 90, 3, 50])
    )
    found["numbers of each neuron"] = Net([given(5), dense(even(4, 5), vectors)], spikes(5))
    found["flat weights, no input layer"] = Net([dense(even(4, 5).ravel(), cell(type="LOIHI"), outputs=4)], spikes(5))
    fractions = dense(even(4, 5) + 0.6, bias=[1.9, -1.9, 0, 0])
    found["fractions"] = Net([given(5), fractions], spikes(5), notes=("cuts the fractions off its weight", "its bias"))
    wide = dense(even(4, 5), bias=np.array([40000.0, -40000, 30, -70000]))
    wide["neuron"]["vDecay"] = 4000
    found["a bias that wraps"] = Net([given(5), wide], spikes(5), refused="bias_fits", notes=("40000 wraps",))
    readout = {k: v for k, v in dense(even(3, 4), bias=[2.0, 0, -2]).items() if k != "neuron"}
    found["no neurons at the end"] = Net(
        [given(5), dense(even(4, 5)), readout], spikes(5), refused="vth_fits", notes=("has no neurons",)
    )
    never = dense(even(3, 4), cell(vThMant=(1 << 18) - 1, vDecay=0))
    found["a threshold out of reach"] = Net(
        [given(5), dense(even(4, 5)), never], spikes(5), refused="vth_fits", notes=("it never fires",)
    )
    graded = [dense(even(4, 5, lo=-6, hi=8), cell(vThMant=120)), dense(even(3, 4))]
    found["graded input"] = Net([given(5), *graded], spikes(5, lo=-20, hi=30), interval(-20, 30, True), bits=6)

    # --- maps: C, H, W = 2, 5, 4
    kernels = [
        conv(even(4, 2, 3, 2)[..., None], (4, 3, 3), stride=[2, 1], padding=[1, 0], bias=[40.0, 0, -9, 3]),
        conv(rng.integers(-90, 99, (4, 2, 2, 3)) | 1, (4, 2, 5), padding=[0, 2], groups=2),
        conv(even(2, 4, 1, 2), (2, 2, 2), dilation=[1, 3], bias=rng.integers(-9, 40, (2, 2, 2)).astype(float)),
    ]
    kernels[1]["neuron"] = cell(vThMant=np.array([60, 90, 30, 120]), iDecay=np.array([4096, 900, 4096, 70]))
    found["convolutions"] = Net([given(2, 5, 4), *kernels], spikes(2, 5, 4))
    flat = [
        conv(even(4, 2, 2, 2), (4, 4, 3), stride=1, padding=0, dilation=1, delay=[3.0] * 4),
        FLAT,
        dense(even(3, 48)),
    ]
    flat[2]["neuron"] = cell(vThMant=200, refDelay=3, gradedSpike=True)
    found["convolution, flatten, dense"] = Net(
        [given(2, 5, 4), *flat], spikes(2, 5, 4), notes=("ignores the delays", "refractory delay", "graded spikes")
    )
    big = conv(rng.integers(-400, 401, (4, 2, 2, 2)), (4, 4, 3), neuron=cell(vThMant=400))
    found["convolution with large weights"] = Net(
        [given(2, 5, 4), big], spikes(2, 5, 4), refused="weight_fits", notes=("fit no synapse word",)
    )
    found["flatten first"] = Net([given(2, 3, 4), FLAT, dense(even(4, 24), cell(vThMant=300))], spikes(2, 3, 4))
    found["no flatten first"] = Net(
        [given(2, 3, 2), dense(even(4, 12), cell(vThMant=100))], spikes(12), notes=("12 values in a row",)
    )
    source = given(2, 4, 3, weight=[36.0], bias=[34.0], neuron=cell(type="LOIHI", vDecay=1024, iDecay=200, vThMant=25))
    found["an input with neurons"] = Net(
        [source, conv(even(3, 2, 2, 2), (3, 3, 2), bias=[20.0, 0, -20])],
        spikes(2, 4, 3, lo=-10, hi=40),
        interval(-10, 40, True),
        notes=("36 * x + 34", "reset_offset = 0"),
    )

    # --- what carries over from sample to sample: run apart
    back = {"weight_rec": even(4, 4).astype(np.float32), "type": "dense_rec", "bias": [10.0, -30, 0, 0]}
    layers = [given(5), {**dense(even(4, 5), memory), **back}, dense(even(3, 4))]
    found["a loop"] = Net(layers, spikes(5), apart=True, notes=("loop of layer 1", "positive biases"))
    both = {"weight_rec": np.full((4, 4), 7.0), "type": "dense_rec"}
    both["weight_rec"][1] = -9
    found["a loop beside small weights"] = Net(
        [dense(even(4, 4, lo=-4, hi=6), cell(vThMant=5)) | both], spikes(4), apart=True
    )
    late = {**both, "delay": [0.0, 2.9, 1, 3], "weight_rec": -np.array(both["weight_rec"])}
    found["a loop with delays"] = Net(
        [dense(even(4, 4, lo=-20, hi=30), cell(vThMant=90)) | late], spikes(4), apart=True, notes=("count 8 times",)
    )
    found["delays of neurons"] = Net([dense(even(4, 5), delay=[0.0, 2.7, 3, 1])], spikes(5), apart=True)
    found["delays of inputs"] = Net([dense(even(4, 5), delay=[0.0, 2.7, 3, 1, 6])], spikes(5), apart=True)
    long = np.array([[0.0, 70, 2], [1, -2, 0]])
    found["delays of synapses"] = Net(
        [dense(even(2, 3), delay=long)], spikes(3), apart=True, notes=("up to 70 steps to 62", "delays of layer 0")
    )
    found["one delay"] = Net([dense(even(4, 5, lo=-2, hi=6), cell(vThMant=3), delay=2.0)], spikes(5), apart=True)
    odd = -rng.integers(0, 5, (4, 5))
    odd[0] = -8, -8, 0, -8, -3
    late = [dense(odd, cell(vThMant=10), delay=[1.0, 0, 0, 2, 1])]  # Lava shifts what each delay brings by itself
    x = spikes(5, lo=-20, hi=30)
    half = ("-8 becomes -7.5",)
    found["graded and late"] = Net(late, x, interval(-20, 30, True), bits=6, apart=True, notes=half)
    return found


NETS = nets()
