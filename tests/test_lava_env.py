"""Lava's environment, the supervision of its worker, and our processes inside it.

Makes the environment on first use, which takes a minute and a network.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from targets.lava import env
from targets.lava.guard import SHARED_MEMORY
from targets.lava.supervise import WorkerError, WorkerTimeout, run_worker

ROOT = Path(__file__).parents[1]

# The start of every worker here: under guard, with Lava loaded and names at hand.
WORKER = """
import os, sys, time
from multiprocessing import shared_memory
from pathlib import Path
from targets.lava.guard import guard

def main():
    from targets.lava import compat
    compat.load()
    import numpy as np
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense
    from lava.proc.lif.process import LIF
    from targets.lava.processes.anchor import Anchor
    from targets.lava.processes.delay import DelayLine
    from targets.lava.processes.player import Player
    from targets.lava.processes.recorder import Recorder

    def run(process, steps, tag="floating_pt"):
        process.run(RunSteps(steps), Loihi2SimCfg(select_tag=tag), {"pypy_channel_size": 1})

    folder = Path(sys.argv[1])
"""
# Plays to a neuron, runs five steps, tells its group and its shared memory, and leaves the end to the rest.
STARTED = """
np.save(folder / "x.npy", np.ones((5, 3)))
player, lif = Player(folder / "x.npy"), LIF(shape=(3,))
player.out.connect(lif.a_in)
run(player, 5)
print("started", os.getpid(), shared_memory._SHM_NAME_PREFIX[1:], flush=True)
"""


@pytest.fixture(scope="session")
def lava() -> Path:
    return env.python()


def _script(folder: Path, body: str) -> str:
    """Write a worker whose main ends with body; returns its path."""
    path = folder / "worker.py"
    path.write_text(WORKER + textwrap.indent(body, "    ") + "\nguard(main)\n")
    return str(path)


def _work(lava: Path, folder: Path, body: str, timeout: float = 60) -> list[str]:
    lines: list[str] = []
    script = _script(folder, body)
    run_worker(lava, [script, str(folder)], timeout=timeout, pythonpath=[ROOT], on_progress=lines.append)
    return lines


def _members(group: int) -> list[int]:
    """Living processes of a group; zombies wait for a parent that may be slow to look."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def _left(started: str) -> list[int | str]:
    """What is left of a worker that said `started GROUP PREFIX`: processes and segments of shared memory."""
    _, group, prefix = started.split()
    return [*_members(int(group)), *(path.name for path in SHARED_MEMORY.glob(f"{prefix}*"))]


def _nothing_stays(started: str) -> None:
    """The group has been killed; on a busy machine its last process may take a moment to be gone."""
    deadline = time.monotonic() + 10
    while left := _left(started):
        assert time.monotonic() < deadline, f"{left} outlive their starter"
        time.sleep(0.05)


def test_player_dense_lif_recorder(lava: Path, tmp_path: Path) -> None:
    """One Dense is one step, the recorder takes it off again; two networks share one start."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(6, 3)), rng.normal(size=(2, 3))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", weights)
    lines = _work(
        lava,
        tmp_path,
        """
anchor = Anchor()
for name in "ab":
    player = Player(folder / "x.npy")
    dense = Dense(weights=np.load(folder / "w.npy"), num_message_bits=24)
    lif = LIF(shape=(2,), du=1, dv=0.25, vth=0.5)
    spikes = Recorder(folder / f"{name}.npy", (2,), steps=6, latency=1, dtype="int8")
    current = Recorder(folder / f"{name}_in.npy", (2,), steps=6, latency=1)
    player.link.connect(anchor.links)
    player.out.connect(dense.s_in)
    dense.a_out.connect(lif.a_in)
    dense.a_out.connect(current.inp)
    lif.s_out.connect(spikes.inp)
run(anchor, 3)
print("progress 3/7", flush=True)
run(anchor, 4)
print("progress 7/7", flush=True)
assert np.load(folder / "a.npy").shape == (6, 2)
anchor.stop()
""",
    )
    assert lines == ["progress 3/7", "progress 7/7"]
    v, expected = np.zeros(2), []
    for row in x:
        v = v * (1 - 0.25) + weights.dot(row)
        expected.append(v > 0.5)
        v[expected[-1]] = 0
    for name in "ab":
        spikes, current = np.load(tmp_path / f"{name}.npy"), np.load(tmp_path / f"{name}_in.npy")
        assert spikes.dtype == np.int8
        np.testing.assert_array_equal(spikes, np.array(expected, dtype=np.int8))
        np.testing.assert_array_equal(current, np.stack([weights.dot(row) for row in x]))


@pytest.mark.parametrize("tag", ["floating_pt", "fixed_pt"])
def test_delay_line(lava: Path, tmp_path: Path, tag: str) -> None:
    """A shift, and a model's delay, which takes nothing from one sample (5 steps) to the next."""
    x = np.arange(1.0, 15.0).reshape(14, 1)
    np.save(tmp_path / "x.npy", x)
    _work(
        lava,
        tmp_path,
        f"""
player = Player(folder / "x.npy")
for length in 0, 1, 2, 4:
    for name, own in (("model", dict(delay=length, period=5, latency=1)), ("shift", dict())):
        line = DelayLine((1,), length, **own)
        player.out.connect(line.inp)
        line.out.connect(Recorder(folder / f"{{name}}{{length}}.npy", (1,), steps=14).inp)
run(player, 14, {tag!r})
player.stop()
""",
    )
    for length in (0, 1, 2, 4):
        shifted = np.concatenate([np.zeros((length, 1)), x])[:14]
        np.testing.assert_array_equal(np.load(tmp_path / f"shift{length}.npy"), shifted)
        shifted[(np.arange(14) - 1) % 5 < length] = 0
        np.testing.assert_array_equal(np.load(tmp_path / f"model{length}.npy"), shifted)


def test_delay_line_breaks_a_cycle(lava: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(6, 1))  # one impulse goes round
    _work(
        lava,
        tmp_path,
        """
player, lif = Player(folder / "x.npy"), LIF(shape=(1,), du=1, dv=1, vth=0.5)
line, recorder = DelayLine((1,), 2), Recorder(folder / "s.npy", (1,), steps=6)
player.out.connect(lif.a_in)
lif.s_out.connect(line.inp)
line.out.connect(lif.a_in)
lif.s_out.connect(recorder.inp)
run(player, 6)
player.stop()
""",
    )
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy")[:, 0], [1, 0, 1, 0, 1, 0])


def test_conv_is_torch_s_correlation(lava: Path, tmp_path: Path) -> None:
    """Conv and the reshaping ports work on the NumPy that the environment pins."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x, w = rng.integers(-3, 4, (3, 4, 7, 5)).astype(float), rng.integers(-3, 4, (6, 2, 3, 2)).astype(float)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", w[:, :, ::-1, ::-1].transpose(0, 3, 2, 1))
    _work(
        lava,
        tmp_path,
        """
player, weight = Player(folder / "x.npy"), np.load(folder / "w.npy")
shape = dict(input_shape=(5, 7, 4), stride=(1, 2), padding=(2, 1), groups=2)
conv = Conv(weight=weight, num_message_bits=24, **shape)
player.out.transpose((2, 1, 0)).connect(conv.s_in)
out = conv.a_out.transpose((2, 1, 0)).flatten()
recorder = Recorder(folder / "y.npy", out.shape, steps=3, latency=1)
out.connect(recorder.inp)
run(player, 4)
player.stop()
""",
    )
    conv2d = torch.nn.functional.conv2d
    expected = conv2d(torch.tensor(x), torch.tensor(w), stride=(2, 1), padding=(1, 2), groups=2)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected.flatten(1).numpy())


def test_hang_is_ended(lava: Path, tmp_path: Path) -> None:
    """A worker that says nothing more is ended with all its processes."""
    lines: list[str] = []
    script = _script(tmp_path, STARTED + "time.sleep(600)")
    with pytest.raises(WorkerTimeout, match="said nothing for 6 s") as caught:
        run_worker(lava, [script, str(tmp_path)], timeout=6, pythonpath=[ROOT], on_progress=lines.append)
    assert "\n" not in str(caught.value)
    _nothing_stays(lines[0])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no such layer')", "ValueError: no such layer"),
        (STARTED + "raise ValueError('no such layer')", "ValueError: no such layer"),
        (STARTED + "sys.exit('told why')", "told why"),
        (STARTED + "os.kill(os.getpid(), 9)", "exit status 137"),
        # Inside one of Lava's processes, which keeps errors to itself and hangs.
        ("np.save(folder / 'x.npy', np.full((2, 1), 300.0)); player = Player(folder / 'x.npy')\n"
         "recorder = Recorder(folder / 'y.npy', (1,), steps=2, dtype='int8')\n"
         "player.out.connect(recorder.inp); run(player, 2)", "step 0 has values that int8 cannot hold"),
    ],
)  # fmt: skip
def test_crash_is_told(lava: Path, tmp_path: Path, body: str, message: str) -> None:
    lines: list[str] = []
    script = _script(tmp_path, body)
    with pytest.raises(WorkerError, match=message) as caught:
        run_worker(lava, [script, str(tmp_path)], timeout=30, pythonpath=[ROOT], on_progress=lines.append)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, WorkerTimeout)
    for line in lines:
        if line.startswith("started"):
            _nothing_stays(line)


def test_stderr_is_bounded(tmp_path: Path) -> None:
    script = tmp_path / "loud.py"
    script.write_text("import sys\nsys.stderr.write('x' * 300_000 + '\\nthe end\\n')\nsys.exit(3)\n")
    with pytest.raises(WorkerError, match=r"exit status 3\): the end$") as caught:
        run_worker(Path(sys.executable), [str(script)], timeout=30)
    assert len(caught.value.stderr) <= 1 << 16


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_worker_does_not_outlive_its_starter(lava: Path, tmp_path: Path, how: signal.Signals) -> None:
    script = _script(tmp_path, STARTED + "time.sleep(600)")
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from targets.lava.supervise import run_worker\n"
            "run_worker(Path(sys.argv[1]), sys.argv[2:], timeout=60, pythonpath=[Path.cwd()],"
            " on_progress=lambda line: print(line, flush=True))",
            str(lava),
            script,
            str(tmp_path),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # a shell starts background jobs with SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with starter:
        assert starter.stdout
        started = starter.stdout.readline()
        assert len(_left(started)) > 3
        starter.send_signal(how)
        starter.wait(20)
    _nothing_stays(started)


def test_failing_pip_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.PLACE, str(tmp_path / "env"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(env.LavaUnavailable, match="pip failed: No matching distribution") as caught:
        env.python()
    assert "\n" not in str(caught.value) and env.PLACE in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["env.lock"]


def test_concurrent_creation_builds_once(tmp_path: Path) -> None:
    """Whoever waits for the lock finds the environment made."""
    built: list[Path] = []

    def install(build: Path) -> None:
        built.append(build)
        (build / "bin").mkdir(parents=True)
        time.sleep(0.2)
        (build / "bin" / "python").touch()

    found: list[Path] = []
    folder = tmp_path / "cache" / "lava"
    threads = [threading.Thread(target=lambda: found.append(env.prepared(folder, "spec", install))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [folder / "bin" / "python"] * 4 and len(built) == 1

    env.prepared(folder, "newer", install)  # stale
    (folder / "bin" / "python").unlink()  # broken
    env.prepared(folder, "newer", install)
    assert len(built) == 3


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(env.LavaUnavailable, match="holds other files"):
        env.prepared(tmp_path, "spec", lambda build: build.mkdir())
    assert (tmp_path / "thesis.txt").exists()


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def install(build: Path) -> None:
        build.mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(env.LavaUnavailable, match="No space left on device; free space"):
        env.prepared(tmp_path / "env", "spec", install)
    assert [path.name for path in tmp_path.iterdir()] == ["env.lock"]
