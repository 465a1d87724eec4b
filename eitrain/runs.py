"""Run folders: config, metrics and checkpoints, written so that a kill at any moment loses at most one epoch.

Every file is written under a temporary name and renamed. Checkpoints are safetensors and JSON: nothing in a run folder
can run code.
"""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from eiexport.errors import GraphError
from eiexport.files import replacing
from eiexport.plans import Plan, plan_from_json
from eitrain import recipes
from eitrain.errors import TrainError
from eitrain.nets import SpikingNet
from eitrain.recipes import Recipe

CHECKPOINTS = ("best", "last")
# safetensors and torch tell damage in all of these ways
DAMAGE = (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, OSError, MemoryError)


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def checkpoint(self, name: str) -> Path:
        """Path of "best", "last", or "resume" (what --resume goes on from); raises TrainError for another name."""
        if name not in (*CHECKPOINTS, "resume"):
            raise TrainError(f"unknown checkpoint {name!r}; valid: {', '.join(CHECKPOINTS)}")
        return self.path / f"{name}.safetensors"

    def config(self) -> dict[str, Any]:
        """config.json as stored; raises TrainError when it is missing or broken."""
        path = self.path / "config.json"
        if not self.path.is_dir():
            raise TrainError(f"{self.path}: no such run folder; `eitrain fit --out {self.path}` makes one")
        try:
            found = read_json(path.read_bytes())
        except FileNotFoundError:
            raise TrainError(f"{self.path}: no run folder (config.json is missing)") from None
        except ValueError as e:
            raise TrainError(f"{path}: not valid JSON ({e}); the run cannot be used") from None
        data = found.get("data", {}) if isinstance(found, dict) else None
        if not isinstance(data, dict) or not isinstance(data.get("folder") or "", str):
            raise TrainError(f"{path}: not the config of a run; it cannot be used")
        return found

    def recipe(self) -> Recipe:
        """The recipe the run was trained with."""
        stored = self.config().get("recipe")
        if not isinstance(stored, dict):
            raise TrainError(f"{self.path / 'config.json'}: holds no recipe; the run cannot be used")
        try:
            return recipes.from_config(stored)
        except TrainError as e:
            raise TrainError(f"{self.path / 'config.json'}: {e}") from None

    def plan(self, bits: int) -> Plan:
        """The quantisation plan that the run was trained with; raises TrainError when it is missing or broken."""
        path = self.path / "plan.json"
        try:
            plan = plan_from_json(read_json(path.read_bytes()))
        except FileNotFoundError:
            raise TrainError(f"{path}: missing, and an integer run cannot be used without; train it again") from None
        except (ValueError, GraphError) as e:
            raise TrainError(f"{path}: {e}; train it again") from None
        if plan.bits != bits:
            raise TrainError(f"{path}: is for {plan.bits} bits, the run for {bits}; train it again")
        return plan

    def data_dir(self, given: Path | None = None) -> Path | None:
        """Where the run's data is: the folder given now, else the one it was trained from, while that exists."""
        stored = self.config().get("data", {}).get("folder")
        return given or (Path(stored) if stored and Path(stored).is_dir() else None)

    def write_json(self, name: str, value: Any) -> None:
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n")

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in rows))

    def read_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Rows of the first `epochs` epochs."""
        lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
        try:
            return [row for row in map(json.loads, lines) if row["epoch"] < epochs]
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise TrainError(f"{self.metrics}: damaged ({e}); remove it to go on without the earlier rows") from None


def read_json(text: bytes | str) -> Any:
    """JSON of unknown origin; raises ValueError in one line for what is none or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError as e:
        raise ValueError((str(e).splitlines() or ["damaged"])[0]) from None


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Tensors and JSON metadata in one safetensors file that appears whole or not at all."""
    flat = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with replacing(path) as temporary:
        # save_file would leave a file that only its owner can read
        temporary.write_bytes(safetensors.torch.save(flat, {"eitrain": json.dumps(meta)}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a checkpoint; raises TrainError when it is missing, truncated or foreign."""
    if not path.is_file():
        raise TrainError(f"{path}: no such checkpoint; train first, or choose another with --checkpoint best|last")
    try:
        with safe_open(path, "pt") as f:
            tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, read_json((f.metadata() or {})["eitrain"])  # noqa: SIM118
    except DAMAGE as e:
        told = (str(e).splitlines() or [type(e).__name__])[0]
        raise TrainError(f"{path}: not a checkpoint of eitrain, truncated or corrupt ({told})") from None
    epoch = meta.get("epoch", 0) if isinstance(meta, dict) else None
    if type(epoch) is not int or not -1 <= epoch < 1 << 31:
        raise TrainError(f"{path}: not a checkpoint of eitrain, what it says of its epoch is no number of one")
    return tensors, meta


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model; raises TrainError for missing, unknown, misshapen or non-finite ones."""
    own = model.state_dict()
    if odd := sorted(own.keys() ^ tensors.keys()):
        raise TrainError(f"{path}: does not fit the network: {odd[0]} is on one side only")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, the network asks for {tuple(own[name].shape)}"
            raise TrainError(f"{path}: does not fit the network: {name} has shape {shapes}")
        if not torch.isfinite(tensor).all():
            raise TrainError(f"{path}: {name} holds NaN or infinite weights; the training diverged, lower lr")
    model.load_state_dict(tensors)
    if isinstance(model, SpikingNet):
        model.project()  # what a file holds may break Dale's law, a network may not


def dale(model: SpikingNet, epoch: int) -> None:
    """Raise TrainError where a circuit's weight or gain is negative: such a checkpoint must not be stored."""
    for name, circuit in model.circuits.items():
        for key, p in circuit.constrained.items():
            if bool((p < 0).any()):
                raise TrainError(f"epoch {epoch + 1}: {name}.{key} holds {float(p.min()):g}, against Dale's law")


def provenance() -> dict[str, Any]:
    """Versions and git commit of what made a run."""
    found = {}
    for package in ("eitrain", "torch", "norse", "nir", "numpy", "lightning-fabric"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    git = ["git", "-C", str(Path(__file__).parent)]
    quiet: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
    try:
        # installed inside somebody else's repository, its commit is not ours
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], **quiet)
        commit = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=40"], **quiet).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    return {"versions": found, "git": commit}


def optimiser_state(optimiser: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimiser's moments and step counts as named tensors."""
    found: dict[str, Tensor] = {}
    for index, entry in optimiser.state_dict()["state"].items():
        found |= {f"optimiser.{names[index]}.{key}": torch.as_tensor(v) for key, v in entry.items()}
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], names: list[str]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            name, _, field = key.removeprefix("optimiser.").rpartition(".")
            state.setdefault(names.index(name), {})[field] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def finite_weights(model: nn.Module, epoch: int, rate: str) -> None:
    """Raise TrainError where weights are no numbers: neurons then fall silent, and no loss shows it."""
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise TrainError(f"epoch {epoch + 1}: {name} holds NaN or infinite values; lower {rate} (--set {rate}=...)")


def finite(loss: float, epoch: int) -> float:
    """The loss; raises TrainError when it is not a number."""
    if not math.isfinite(loss):
        raise TrainError(f"epoch {epoch + 1}: the loss is {loss}; training diverged, lower lr (--set lr=...)")
    return loss
