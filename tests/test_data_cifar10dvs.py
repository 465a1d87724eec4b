"""CIFAR10-DVS from tiny recordings in the original format (AEDAT 2.0), against frames written by hand, and damage."""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_data import refused, write

from eitrain import data, events, images
from eitrain.data import load


def stream(found: list[tuple[int, int]], header: bytes = b"#!AER-DAT2.0\r\n# a comment\r\n") -> bytes:
    """A recording in AEDAT 2.0: (address, time) of each event."""
    return header + b"".join(struct.pack(">II", address, time) for address, time in found)


# Address: bit 0 polarity (0 = ON), 1 to 7 and 8 to 14 the place on the sensor. By hand: what is (t, p, y, x) then,
# y = 127 - bits 1 to 7 and x = 127 - bits 8 to 14, with two frames of two events and one more in the second.
BY_HAND = [(0x0000, 50), (0x0001, 60), (0x7FFE, 61), (0x0502, 61), (0x0502, 90)]
PLACES = [(0, 1, 127, 127), (0, 0, 127, 127), (1, 1, 0, 0), (1, 1, 126, 122), (1, 1, 126, 122)]


def counted(places: list[tuple[int, int, int, int]], steps: int) -> np.ndarray:
    frames = np.zeros((steps, 2, 128, 128), np.float32)
    for place in places:
        frames[place] += 1
    return frames


def streams(each: int = 2, **changes: bytes) -> dict[str, bytes]:
    """`each` recordings a class, the n-th of class c with c + 1 events at pixel n of the last row."""
    files = {}
    for c, name in enumerate("airplane automobile bird cat deer dog frog horse ship truck".split()):
        for n in range(each):
            files[f"{name}/cifar10_{name}_{n}.aedat"] = stream([(n << 8, t) for t in range(c + 1)])
    return files | {name.replace("__", "/") + ".aedat": content for name, content in changes.items()}


def zipped(files: dict[str, bytes]) -> dict[str, bytes]:
    out = {}
    for name in sorted({file.split("/")[0] for file in files}):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, content in files.items():
                if file.startswith(f"{name}/"):
                    archive.writestr(file, content)
        out[f"{name}.zip"] = buffer.getvalue()
    return out


def dvs(folder: Path, **options: object) -> data.Dataset:
    return load("cifar10dvs", folder, **{"verify": False, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["CIFAR10DVS/extract", "CIFAR10DVS", "cifar10dvs", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar10dvs(tmp_path: Path, layout: str, packed: bool) -> None:
    files = streams(airplane__cifar10_airplane_0=stream(BY_HAND))
    write(tmp_path / layout, zipped(files) if packed else files)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    dataset = dvs(tmp_path, steps=2)
    assert (dataset.shape, dataset.steps, dataset.classes) == ((2, 128, 128), 2, images.CIFAR10)
    assert dataset.train.labels.tolist() == list(range(10)) == dataset.test.labels.tolist()
    assert dataset.train.labels.dtype == np.int64 and dvs(tmp_path).steps == 10
    x = pickle.loads(pickle.dumps(dataset.train)).batch(np.arange(10))
    assert x.shape == (10, 2, 2, 128, 128) and x.dtype == np.float32
    assert np.array_equal(x[0], counted(PLACES, 2))
    assert x.sum(axis=(1, 2, 3, 4)).tolist() == [5, *range(2, 11)]
    held = dataset.test.batch(np.array([2]))[0]
    assert np.argwhere(held).tolist() == [[0, 1, 127, 126], [1, 1, 127, 126]] and held[1].sum() == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # nothing written


@pytest.mark.parametrize("each, kept", [(2, 1), (10, 9), (11, 9), (20, 18)])
def test_cifar10dvs_is_split_by_name(tmp_path: Path, each: int, kept: int) -> None:
    """The first nine tenths of each class by name as text: 10 and 11 come before 2."""
    write(tmp_path, streams(each))
    dataset = dvs(tmp_path, steps=1)
    order = sorted(map(str, range(each)))
    for split, names in ((dataset.train, order[:kept]), (dataset.test, order[kept:])):
        assert split.labels.tolist() == [c for c in range(10) for _ in names]
        columns = split.batch(split.labels == 6)[:, 0, 1, 127]  # events of pixel n lie in column 127 - n
        assert columns.argmax(axis=1).tolist() == [127 - int(n) for n in names] and (columns.sum(axis=1) == 7).all()


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6])
def test_cifar10dvs_frames(tmp_path: Path, steps: int) -> None:
    write(tmp_path, streams(airplane__cifar10_airplane_0=stream(BY_HAND)))
    each = 5 // steps
    parts = [min(i // each, steps - 1) if each else steps - 1 for i in range(5)]
    places = [(t, *place[1:]) for t, place in zip(parts, PLACES, strict=True)]
    assert np.array_equal(dvs(tmp_path, steps=steps).train.batch(np.array([0]))[0], counted(places, steps))
    by_time = dvs(tmp_path, steps=steps, split="time", bin_us=11).train.batch(np.array([0]))[0]
    places = [((t - 50) // 11, *place[1:]) for (_, t), place in zip(BY_HAND, PLACES, strict=True)]
    assert np.array_equal(by_time, counted([place for place in places if place[0] < steps], steps))


@pytest.mark.parametrize("edge", [2**31, 2**32])
def test_cifar10dvs_clock_overflows_and_events_out_of_order(tmp_path: Path, edge: int) -> None:
    times = [edge - 3, edge - 5, edge + 4]  # the least is the sample's start
    found = [(n << 8, t % 2**32) for n, t in enumerate(times)]
    write(tmp_path, streams(airplane__cifar10_airplane_0=stream(found)))
    x = dvs(tmp_path, steps=10, split="time", bin_us=1).train.batch(np.array([0]))[0]
    assert np.argwhere(x).tolist() == [[0, 1, 127, 126], [2, 1, 127, 127], [9, 1, 127, 125]]


def test_cifar10dvs_leaves_out_what_is_no_pixel(tmp_path: Path) -> None:
    """Bits 15 and 31 mark synchronisation and other special events; they belong to no frame."""
    found = [(0x8000, 1), *BY_HAND[:2], (0x80000000, 55), (0xFFFFFFFF, 56), *BY_HAND[2:]]
    write(tmp_path, streams(airplane__cifar10_airplane_0=stream(found, b"#!AER-DAT2.0\n#\n")))
    assert np.array_equal(dvs(tmp_path, steps=2).train.batch(np.array([0]))[0], counted(PLACES, 2))


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "starts with b''"),
        (stream(BY_HAND, b""), "not with a header of AEDAT 2.0"),
        (stream(BY_HAND, b"#!AER-DAT3.1\r\n"), "not with a header of AEDAT 2.0"),
        (stream(BY_HAND, b"#!AER-DAT2.01\r\n"), "not with a header of AEDAT 2.0"),
        (b"#!AER-DAT2.0", "not with a header"),
        (b"#!AER-DAT2.0\n# no end", "no events"),
        (stream([]), "no events"),
        (stream([(0x8000, 1), (0x80000001, 2)]), "no events"),
        (stream(BY_HAND)[:-1], "39 bytes of events, expected 8 each"),
        (stream(BY_HAND) + b"\0\0\0\0", "44 bytes of events"),
        (stream([*BY_HAND, (0x10000, 70)]), "address 0x10000 is no pixel of a DVS128"),
        (stream([(0x40000000, 70)]), "address 0x40000000 is no pixel"),
    ],
)
def test_damaged_stream(tmp_path: Path, content: bytes, says: str) -> None:
    write(tmp_path, streams(airplane__cifar10_airplane_0=content))
    dataset = dvs(tmp_path)  # recordings are read only when a sample is asked for
    assert dataset.train.batch(np.array([1])).sum() == 2
    refused([tmp_path / "airplane" / "cifar10_airplane_0.aedat", says], dataset.train.batch, np.array([0]))


def test_cifar10dvs_that_is_incomplete_gone_or_too_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(["no folder airplane or airplane.zip", tmp_path / "CIFAR10DVS", "--data-dir"], dvs, tmp_path)
    write(tmp_path, streams())
    refused([tmp_path / "airplane", "2 recordings (.aedat), expected 1000", "airplane.zip"], dvs, tmp_path, verify=True)
    write(tmp_path, {"airplane/._cifar10_airplane_2.aedat": b"x", "airplane/readme.txt": b"x"})  # no recordings
    train = dvs(tmp_path).train
    assert len(train) == 10
    monkeypatch.setattr(events, "_MAX_HEADER", 20)
    monkeypatch.setattr(events, "_MAX_TRIAL", 10)
    refused([tmp_path / "truck", "more than 100 bytes"], train.batch, np.array([9]))
    monkeypatch.undo()
    gone = tmp_path / "deer" / "cifar10_deer_0.aedat"
    gone.unlink()
    refused([gone, "cannot read", "No such file"], train.batch, np.array([4]))
    refused([tmp_path / "deer", "1 recordings (.aedat), expected 2 or more", "deer.zip"], dvs, tmp_path)
    shutil.rmtree(tmp_path / "deer")
    refused([tmp_path / "deer", "0 recordings"], dvs, tmp_path)
    write(tmp_path, {"deer.zip": b"no zip"})
    refused([tmp_path / "deer.zip", "not a zip file"], dvs, tmp_path)
    write(tmp_path, zipped({"deer/deer/1.aedat": b"", "deer/2.aedat": b""}))
    refused([f"{tmp_path / 'deer.zip'}: deer", "1 recordings"], dvs, tmp_path)


def test_cifar10dvs_checksum_knows_names_and_sizes(tmp_path: Path) -> None:
    write(tmp_path / "a", streams())
    one = dvs(tmp_path / "a").checksum
    assert dvs(tmp_path / "a", steps=3).checksum == one
    write(tmp_path / "b", zipped(streams()))
    assert dvs(tmp_path / "b").checksum == one
    write(tmp_path / "a", {"truck/cifar10_truck_1.aedat": stream(BY_HAND)})
    assert dvs(tmp_path / "a").checksum != one
