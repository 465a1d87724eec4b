"""DVS128 Gesture from tiny recordings in the original format (AEDAT 3.1), frames against a naive loop, and damage."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from test_data import event, refused, write

from eitrain import data, events
from eitrain.data import load
from eitrain.events import frame_of

HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 0: DVS128\r\n#Start-Time: 2016-01-01\r\n#!END-HEADER\r\n"


class Event(NamedTuple):
    x: int
    y: int
    polarity: int
    time: int
    valid: int = 1


def packet(found: list[Event], overflow: int = 0, **changes: int) -> bytes:
    """A packet of polarity events, whose times are the 62-bit ones; `changes` replace fields of its header."""
    fields = {"type": 1, "source": 0, "size": 8, "offset": 4, "overflow": overflow}
    fields |= {"capacity": len(found), "number": len(found), "valid": sum(e.valid for e in found)} | changes
    body = b""
    for e in found:
        assert e.time >> 31 == overflow
        body += struct.pack("<II", e.x << 17 | e.y << 2 | e.polarity << 1 | e.valid, e.time & 0x7FFFFFFF)
    return struct.pack("<hhiiiiii", *fields.values()) + body


def other(kind: int, size: int, number: int) -> bytes:
    """A packet of another type: special events (0), frames (2), inertia (3)."""
    return struct.pack("<hhiiiiii", kind, 0, size, 4, 0, number, number, number) + b"\xff" * (size * number)


def recording(*packets: bytes, header: bytes = HEADER) -> bytes:
    return header + b"".join(packets)


def labels(*rows: tuple[int, int, int]) -> bytes:
    return "\n".join(["class,startTime_usec,endTime_usec", *(",".join(map(str, row)) for row in rows), ""]).encode()


def some(seed: int, n: int, start: int, end: int) -> list[Event]:
    """Valid events on few pixels, so that many share one."""
    rng = np.random.default_rng(seed)
    times = sorted(rng.integers(start, end, n).tolist())
    return [Event(int(rng.choice([0, 5, 127])), int(rng.choice([0, 9, 127])), int(rng.integers(2)), t) for t in times]


A, B = some(1, 57, 1000, 9000), some(2, 40, 20000, 30000)
FIRST = "user01_fluorescent_led"
# an empty packet and some of other types between; a packet that ends with the start of the trial, an event at its end,
# two that are not valid
A = [Event(1, 2, 1, 1000), *A]
END = Event(3, 4, 0, 9000)
ALL = [*A, END, Event(6, 6, 1, 2000, 0), Event(7, 7, 0, 3000, 0)]
FILES = {
    "trials_to_train.txt": f"{FIRST}.aedat\r\nuser02_lab.aedat\r\n\r\n".encode(),
    "trials_to_test.txt": b"user24_led.aedat\n",
    f"{FIRST}.aedat": recording(
        packet([Event(0, 0, 0, 999), ALL[0]]),
        other(0, 8, 2),
        packet(ALL[1:30]),
        packet([]),
        packet(ALL[30:]),
        other(2, 36, 1),
        packet(B),
    ),
    f"{FIRST}_labels.csv": labels((2, 1000, 9000), (11, 20000, 30000), (1, 5000, 25000)),
    "user02_lab.aedat": recording(packet(B)),
    "user02_lab_labels.csv": b"class, startTime_usec , endTime_usec\r\n 8 , 20000, 30000 \r\n\r\n",
    "user24_led.aedat": recording(packet(B)),
    "user24_led_labels.csv": labels((7, 0, 10**6)),
}


def naive(found: list[Event], steps: int, start: int = 0, bin_us: int | None = None) -> np.ndarray:
    frames = np.zeros((steps, 2, 128, 128), np.float32)
    for i, e in enumerate(found):
        if bin_us is None:
            t = 0  # by hand: n // steps in each, the last takes the rest
            while t < steps - 1 and i >= (t + 1) * (len(found) // steps):
                t += 1
        else:
            t = (e.time - start) // bin_us
        if t < steps:
            frames[t, e.polarity, e.y, e.x] += 1
    return frames


def gestures(folder: Path, **options: object) -> data.Dataset:
    return load("dvsgesture", folder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["DvsGesture", "dvsgesture/DvsGesture", "dvsgesture", "."])
def test_dvsgesture(tmp_path: Path, layout: str) -> None:
    write(tmp_path / layout, FILES)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    dataset = gestures(tmp_path)
    assert (dataset.steps, dataset.shape, len(dataset.classes)) == (16, (2, 128, 128), 11)
    assert (dataset.classes[0], dataset.classes[10]) == ("hand clapping", "other gestures")
    assert dataset.train.labels.tolist() == [1, 10, 0, 7] and dataset.test.labels.tolist() == [6]
    assert dataset.train.labels.dtype == np.int64
    x = pickle.loads(pickle.dumps(dataset.train)).batch(np.arange(4))
    assert x.shape == (4, 16, 2, 128, 128) and x.dtype == np.float32
    inner = [e for e in [*A, END, *B] if 5000 <= e.time < 25000]  # a trial that overlaps two others, as some do
    for frames, found in zip(x, (A, B, inner, B), strict=True):
        assert np.array_equal(frames, naive(found, 16))
    assert x.max() > 1 and x.sum(axis=(1, 2, 3, 4)).tolist() == [58, 40, len(inner), 40]
    assert np.array_equal(dataset.train.batch(dataset.train.labels == 10), x[1:2])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # nothing written


@pytest.mark.parametrize("steps", [1, 2, 3, 40, 41, 57, 58, 59, 200])
def test_frames_by_number(tmp_path: Path, steps: int) -> None:
    """n a multiple of T, T = 1, one event a frame, and fewer events than frames: then all in the last."""
    write(tmp_path, FILES)
    x = gestures(tmp_path, steps=steps, split="number").train.batch(np.array([0, 1]))
    assert x.shape == (2, steps, 2, 128, 128)
    assert np.array_equal(x[0], naive(A, steps)) and np.array_equal(x[1], naive(B, steps))
    each = x[1].sum(axis=(1, 2, 3))
    assert (each[:-1] == 40 // steps).all() and each.sum() == 40


def test_frames_by_time(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    for steps, bin_us in ((4, 2000), (3, 1), (5, 10**6), (3, 2500)):
        x = gestures(tmp_path, steps=steps, split="time", bin_us=bin_us).train.batch(np.array([0, 3]))
        assert np.array_equal(x[0], naive(A, steps, 1000, bin_us))
        assert np.array_equal(x[1], naive(B, steps, 20000, bin_us))
    assert x[0].sum() < 58  # what comes after the last frame is dropped


def test_nmnist_by_number(tmp_path: Path) -> None:
    times = [0, 1, 2, 900, 5000, 300000, 300001]
    write(
        tmp_path,
        {
            "Train/3/1.bin": b"".join(event(i, 2 * i, 1, t) for i, t in enumerate(times)),
            "Test/1/1.bin": event(0, 0, 0, 9),
        },
    )
    dataset = load("nmnist", tmp_path, steps=3, split="number")
    x = dataset.train.batch(np.array([0]))
    assert np.argwhere(x[0]).tolist() == [[min(i // 2, 2), 1, 2 * i, i] for i in range(7)]
    assert np.array_equal(
        load("nmnist", tmp_path, split="time").train.batch(np.array([0])),
        load("nmnist", tmp_path, steps=100, bin_us=3000).train.batch(np.array([0])),
    )


def test_frame_of_no_events() -> None:
    none = np.empty(0, np.int64)
    assert frame_of(none, 4, None).shape == (0,) == frame_of(none, 4, 10).shape


def test_how_frames_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    refused(["unknown split 'count'", "number, time"], gestures, tmp_path, split="count")
    refused(["bin_us 3000 is for split", "dvsgesture"], gestures, tmp_path, bin_us=3000)
    refused(["bin_us 3000", "number"], load, "nmnist", tmp_path, split="number", bin_us=3000)
    refused(['split="time" needs bin_us'], gestures, tmp_path, split="time")
    refused(["steps 0"], gestures, tmp_path, steps=0)
    refused(["bin_us 0"], gestures, tmp_path, split="time", bin_us=0)


def test_times_beyond_31_bits(tmp_path: Path) -> None:
    """A trial across an overflow, and one far beyond: the packet holds the upper bits."""
    edge, far = 2**31, 5 * 2**31 + 77
    low, high = some(3, 20, edge - 5000, edge), some(4, 30, edge, edge + 5000)
    late = some(5, 10, far, far + 50)
    files = {
        "user24_led.aedat": recording(packet(low), packet(high, 1), packet(late, 5)),
        "user24_led_labels.csv": labels(
            (1, edge - 6000, edge + 6000), (2, far, far + 50), (3, 0, edge), (4, edge, far)
        ),
    }
    write(tmp_path, FILES | files)
    x = gestures(tmp_path, steps=3).test.batch(np.arange(4))
    for frames, found in zip(x, ([*low, *high], late, low, high), strict=True):
        assert np.array_equal(frames, naive(found, 3))
    x = gestures(tmp_path, steps=4, split="time", bin_us=3000).test.batch(np.array([0]))
    assert np.array_equal(x[0], naive([*low, *high], 4, edge - 6000, 3000))


def test_packets_out_of_order_and_events_out_of_order(tmp_path: Path) -> None:
    """Nothing is lost, whatever the order; frames by number take the events as they were recorded."""
    late, early = B[20:][::-1], B[:20]
    write(tmp_path, FILES | {"user24_led.aedat": recording(packet(late), packet(A), packet(early))})
    write(tmp_path, {"user24_led_labels.csv": labels((1, 20000, 30000), (2, 1000, 9000))})
    x = gestures(tmp_path, steps=3).test.batch(np.arange(2))
    assert np.array_equal(x[0], naive([*late, *early], 3)) and np.array_equal(x[1], naive(A, 3))


@pytest.mark.parametrize("header", [b"#!AER-DAT3.1\r\n", b"#!AER-DAT3.1\n#!END-HEADER\n"])
def test_headers(tmp_path: Path, header: bytes) -> None:
    write(tmp_path, FILES | {"user24_led.aedat": recording(packet(B), header=header)})
    assert np.array_equal(gestures(tmp_path).test.batch(np.array([0]))[0], naive(B, 16))
    # behind the end mark, anything is a packet: also one whose type starts with "#"
    write(tmp_path, {"user24_led.aedat": recording(other(35, 4, 1), packet(B))})
    assert gestures(tmp_path).test.batch(np.array([0])).sum() == 40


def test_a_recording_is_indexed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    train, start = gestures(tmp_path).train, events._packets.cache_info()
    for _ in range(3):
        train.batch(np.arange(3))
    now = events._packets.cache_info()
    assert now.misses == start.misses + 1 and now.hits >= start.hits + 8
    write(tmp_path, {f"{FIRST}.aedat": recording(packet(B), packet(A[:5]))})
    assert train.batch(np.array([0, 1])).sum(axis=(1, 2, 3, 4)).tolist() == [5, 40]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A recording of 1 GiB (a hole in the file) takes no memory of that size."""
    write(tmp_path, FILES | {"user24_led.aedat": HEADER})
    with (tmp_path / "user24_led.aedat").open("ab") as file:
        file.write(other(2, 2**20, 0)[:16] + struct.pack("<iii", 2**10, 2**10, 0))
        file.truncate(len(HEADER) + 28 + 2**30)
        file.seek(0, os.SEEK_END)
        file.write(packet(B))
    test = gestures(tmp_path).test
    tracemalloc.start()
    try:
        x = test.batch(np.array([0]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        (tmp_path / "user24_led.aedat").unlink()
    assert np.array_equal(x[0], naive(B, 16)) and peak < 40 * 2**20


NAME = "user24_led.aedat"
ONE = packet(B)
RECORDINGS: list[tuple[bytes, str]] = [
    (b"", "starts with b''"),
    (b"\x01\x00" + recording(ONE), "not with a header of AEDAT 3.1"),
    (recording(ONE, header=b"#!AER-DAT2.0\r\n"), "not with a header of AEDAT 3.1"),
    (b"#!AER-DAT3.1", "not with a header"),  # the line does not end
    (recording(ONE, header=HEADER.replace(b"RAW", b"SerializedTS")), "SerializedTS"),
    (recording(), "no valid events from 0 to 1000000 us"),
    (recording(other(0, 8, 5)), "no valid events"),
    (recording(packet([])), "no valid events"),
    (recording(packet([e._replace(valid=0) for e in B])), "no valid events"),
    (recording(packet([e._replace(time=e.time + 10**6) for e in B])), "no valid events"),
    (recording(ONE[:20]), "ends in the middle of a packet header"),
    (recording(ONE, b"\x01"), "ends in the middle of a packet header"),
    (recording(ONE[:-1]), "40 events (room for 40) of 8 bytes, of which 319 bytes are left"),
    (recording(packet(B, number=39)), "39 events (room for 40)"),
    (recording(packet(B, number=-1, capacity=-1)), "claims -1 events"),
    (recording(packet(B, size=-8)), "of -8 bytes"),
    (recording(ONE[:12] + b"\xff" * 4 + ONE[16:]), "claims 40 events"),
    (recording(packet(B, size=2**31 - 1, number=2**31 - 1, capacity=2**31 - 1)), "bytes are left"),
    (recording(packet(B, offset=0)), "polarity events of 8 bytes, time at 0, expected 8 and 4"),
    (recording(packet(B, size=4, number=80, capacity=80)), "polarity events of 4 bytes"),
    (recording(ONE[:-4] + b"\xff\xff\xff\xff"), "negative time"),
    (recording(packet([*B, Event(128, 0, 0, 20000)])), "outside 128x128"),
    (recording(packet([*B, Event(0, 2**14, 0, 20000)])), "outside 128x128"),
]


@pytest.mark.parametrize("content, says", RECORDINGS, ids=[str(i) for i in range(len(RECORDINGS))])
def test_damaged_recording(tmp_path: Path, content: bytes, says: str) -> None:
    write(tmp_path, FILES | {NAME: content})
    dataset = gestures(tmp_path)  # recordings are read only when a sample is asked for
    assert dataset.train.batch(np.array([3])).sum() == 40
    refused([tmp_path / NAME, says], dataset.test.batch, np.array([0]))


def test_recordings_that_are_gone_or_too_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FILES)
    test = gestures(tmp_path).test
    monkeypatch.setattr(events, "_MAX_TRIAL", 39)
    refused([tmp_path / NAME, "about 40 events from 0 to 1000000 us"], test.batch, np.array([0]))
    (tmp_path / NAME).unlink()
    refused([tmp_path / NAME, "cannot read", "No such file"], test.batch, np.array([0]))
    refused([tmp_path / NAME, "No such file", "--data-dir"], gestures, tmp_path)
    (tmp_path / NAME).mkdir()
    refused([tmp_path / NAME, "Is a directory"], gestures(tmp_path).test.batch, np.array([0]))


Change = Callable[[dict[str, bytes]], object]
CSV, LIST = "user24_led_labels.csv", "trials_to_test.txt"
TEXTS: list[tuple[Change, list[str]]] = [
    (lambda f: f.pop("trials_to_train.txt"), ["no trials_to_train.txt (of DvsGesture)", "--data-dir"]),
    (lambda f: f.pop(LIST), [LIST, "No such file"]),
    (lambda f: f.pop(CSV), [CSV, "No such file"]),
    (lambda f: f.update({LIST: b""}), [LIST, "no samples"]),
    (lambda f: f.update({LIST: b"../user24_led.aedat\n"}), [LIST, "no name of a recording"]),
    (lambda f: f.update({LIST: b"user24_led\n"}), [LIST, "no name of a recording"]),
    (lambda f: f.update({LIST: b"user02_lab.aedat\n"}), [LIST, "user02_lab.aedat", "listed twice"]),
    (lambda f: f.update({LIST: b"\xff\xfe"}), [LIST, "not a text file"]),
    (lambda f: f.update({LIST: b"\n" * 2**21}), [LIST, "more than 1048576 bytes"]),
    (lambda f: f.update({CSV: b""}), [CSV, "does not start with class,startTime_usec,endTime_usec"]),
    (lambda f: f.update({CSV: b"1,2,3\n"}), [CSV, "does not start with class"]),
    (lambda f: f.update({CSV: labels()}), [CSV, "no trials"]),
    *(
        (lambda f, row=row: f.update({CSV: b"class,startTime_usec,endTime_usec\n" + row}), [CSV, "class 1..11"])
        for row in (
            b"0,1,2",
            b"12,1,2",
            b"1,2",
            b"1,2,3,4",
            b"1,2,2",
            b"1,3,2",
            b"1,-2,3",
            b"1,2.5,3",
            b"a,1,2",
            b"1,,2",
            b"1,1,9999999999999999999",
        )
    ),
]


@pytest.mark.parametrize("case", range(len(TEXTS)))
def test_damaged_lists_and_labels(tmp_path: Path, case: int) -> None:
    change, says = TEXTS[case]
    files = dict(FILES)
    change(files)
    write(tmp_path, files)
    refused([tmp_path, *says], gestures, tmp_path)


def test_a_packed_release_is_told_to_be_unpacked(tmp_path: Path) -> None:
    write(tmp_path, {"DvsGesture.tar.gz": b"x"})
    refused([tmp_path / "DvsGesture.tar.gz", "unpack it"], gestures, tmp_path)


def test_checksum_knows_names_sizes_and_labels(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    one = gestures(tmp_path).checksum
    assert gestures(tmp_path, steps=3).checksum == one
    for name, content in ((CSV, labels((7, 0, 10**6 + 1))), (NAME, FILES[NAME] + ONE)):
        write(tmp_path, FILES | {name: content})
        assert gestures(tmp_path).checksum != one
