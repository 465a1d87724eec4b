"""Event data sets from their original files, as frames: N-MNIST, DVS128 Gesture and CIFAR10-DVS."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eitrain.download import (
    Tree,
    file_sha256,
    not_found,
    read_file,
    read_member,
    sha256,
    text_lines,
    zip_members,
)
from eitrain.errors import TrainError
from eitrain.images import CIFAR10, DIGITS
from eitrain.samples import Bytes, Dataset, Floats, Ints, Split, checked_labels


def frame_of(time: Ints, steps: int, bin_us: int | None) -> Ints:
    """The frame, from 0, of each event of a sample; events of frames beyond steps - 1 are dropped.

    time: microseconds since the sample's start (n,), in the order of recording.
    bin_us: frame t covers t * bin_us to (t + 1) * bin_us, its end excluded. None: by number of events (as BIRIL splits
        DVS128 Gesture), n // steps in each frame and the rest in the last one, so with n < steps all in the last one.
    """
    if bin_us is not None:
        return time // bin_us
    each = len(time) // steps
    return np.minimum(np.arange(len(time)) // each, steps - 1) if each else np.full(len(time), steps - 1)


_RECORDING = re.compile(r"(?:.*/)?(Train|Test)/([0-9])/([^/.][^/]*\.bin)")
_SIDE = 34  # the sensor window, in pixels
_MAX_EVENTS = 2**23  # one in every microsecond of the 23-bit clock: beyond it, a file is no recording


class _Recording(NamedTuple):
    """One sample: the file `path`, or that member of a zip archive. Sorts by part, label and file name."""

    part: str
    label: int
    file: str
    size: int
    path: str
    archive: str | None

    @property
    def where(self) -> str:
        return self.path if self.archive is None else f"{self.archive}: {self.path}"

    def events(self) -> tuple[Ints, Ints, Ints, Ints]:
        """x, y (0..33), polarity (1 = ON) and time (microseconds), each (n,), of the 40-bit events."""
        try:
            if self.archive is None:
                raw = read_file(Path(self.path), 5 * _MAX_EVENTS)
            else:
                raw = read_member(self.archive, self.path, 5 * _MAX_EVENTS)
        except OSError as err:
            raise TrainError(f"{self.where}: cannot read ({err.strerror or err}); restore the file") from err
        _check_size(len(raw), self.where)
        x, y, high, middle, low = np.frombuffer(raw, np.uint8).reshape(-1, 5).T.astype(np.int64)
        if max(x.max(), y.max()) >= _SIDE:
            raise TrainError(f"{self.where}: events outside {_SIDE}x{_SIDE} pixels; download N-MNIST again")
        return x, y, high >> 7, (high & 0x7F) << 16 | middle << 8 | low


def _check_size(size: int, where: str) -> None:
    if size % 5 or not 0 < size <= 5 * _MAX_EVENTS:
        raise TrainError(f"{where}: {size} bytes, expected 5 an event, at least one; download it again")


@dataclass(frozen=True, eq=False)
class _Events:
    """Reads recordings as binary frames: [t, p, y, x] is 1 where an event of polarity p fell in frame t."""

    recordings: tuple[_Recording, ...]
    steps: int
    bin_us: int | None

    def __call__(self, indices: Ints) -> Floats:
        out = np.zeros((len(indices), self.steps, 2, _SIDE, _SIDE), dtype=np.float32)
        for slot, i in enumerate(indices):
            x, y, polarity, time = self.recordings[i].events()
            frame = frame_of(time, self.steps, self.bin_us)
            kept = frame < self.steps
            out[slot, frame[kept], polarity[kept], y[kept], x[kept]] = 1
        return out


def load_nmnist(root: Path, steps: int, bin_us: int | None) -> Dataset:
    """N-MNIST (Orchard et al. 2015): 34x34, from Train and Test with a folder per digit, as files or in zips."""
    base = root / "NMNIST" if (root / "NMNIST").is_dir() else root
    recordings, archives = _index_folders(base), []
    if not recordings:
        archives = sorted(base.glob("*.zip"))
        recordings = [recording for archive in archives for recording in _index_zip(archive)]
    recordings.sort()
    if len({recording[:3] for recording in recordings}) < len(recordings):
        raise TrainError(f"{base}: its zip files hold the same recordings twice; leave one copy there")
    splits = []
    for part in ("Train", "Test"):
        chosen = tuple(recording for recording in recordings if recording.part == part)
        if not chosen:
            raise not_found("nmnist", f"{part}/<0..9>/*.bin, as files or in a zip,", [base])
        for recording in chosen:
            _check_size(recording.size, recording.where)
        labels = np.array([recording.label for recording in chosen], dtype=np.int64)
        splits.append(Split(labels, _Events(chosen, steps, bin_us)))
    if archives:
        checksum = {archive.name: file_sha256(archive) for archive in archives}
    else:  # hashing 70000 files would take minutes
        listing = "".join(f"{r.part}/{r.label}/{r.file} {r.size}\n" for r in recordings)
        checksum = {"names and sizes": sha256(listing.encode())}
    source = f"N-MNIST ({', '.join(archive.name for archive in archives) or 'original files'})"
    return Dataset("nmnist", splits[0], splits[1], DIGITS, (2, _SIDE, _SIDE), steps, source, checksum)


def _index_folders(base: Path) -> list[_Recording]:
    found = []
    for folder in (base / part / label for part in ("Train", "Test") for label in DIGITS):
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if match := _RECORDING.fullmatch(Path(entry.path).as_posix()):
                    part, label, file = match.groups()
                    found.append(_Recording(part, int(label), file, entry.stat().st_size, entry.path, None))
    return found


def _index_zip(archive: Path) -> list[_Recording]:
    found = []
    for info in zip_members(archive):
        if match := _RECORDING.fullmatch(info.filename):
            part, label, file = match.groups()
            found.append(_Recording(part, int(label), file, info.file_size, info.filename, str(archive)))
    return found


_GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
_DVS_SIDE = 128
_POLARITY = 1  # the packet type
_MAX_TEXT = 2**20  # bytes of a list of trials or labels; the real ones have a few hundred
_MAX_HEADER = 2**16  # bytes of text at the start of a recording
_MAX_TRIAL = 2**24  # events: a DVS128 sends at most about a million a second, and a trial takes seconds
# eventType, eventSource, eventSize, eventTSOffset, eventTSOverflow, eventCapacity, eventNumber, eventValid
_PACKET = struct.Struct("<hhiiiiii")


class _Packets(NamedTuple):
    """The polarity packets of one recording that hold events, each (packets,).

    at: byte offset of the first event. events: how many. high: the packet's part of the time, to be ORed to theirs.
    first, last: the least and the greatest time in it, microseconds.
    """

    at: Ints
    events: Ints
    high: Ints
    first: Ints
    last: Ints


def _events_at(raw: Bytes, at: int, count: int) -> NDArray[np.uint32]:
    """`count` polarity events (count, 2), not copied: data and the lower 31 bits of the time."""
    return raw[at : at + 8 * count].view("<u4").reshape(count, 2)


def _map(path: str) -> Bytes:
    return np.asarray(np.memmap(path, np.uint8, "r"))


@lru_cache(maxsize=256)  # the data set has 122 recordings, and this about 40 bytes for each packet of one
def _packets(path: str, _modified_ns: int, _size: int) -> _Packets:
    """Where the events of an AEDAT 3.1 recording lie, found by reading it once."""
    at, raw = _skip_header(path), _map(path)
    rows: list[tuple[int, ...]] = []
    while at < len(raw):
        if len(raw) - at < _PACKET.size:
            raise TrainError(f"{path}: ends in the middle of a packet header; download it again")
        header = raw[at : at + _PACKET.size].tobytes()
        kind, _, each, offset, overflow, capacity, count, _ = _PACKET.unpack(header)
        at += _PACKET.size
        if min(each, overflow, count) < 0 or capacity != count or each * count > len(raw) - at:
            raise TrainError(
                f"{path}: packet at byte {at - _PACKET.size} claims {count} events (room for {capacity}) of {each} "
                f"bytes, of which {len(raw) - at} bytes are left; download it again"
            )
        if kind == _POLARITY and count:
            if (each, offset) != (8, 4):
                raise TrainError(f"{path}: polarity events of {each} bytes, time at {offset}, expected 8 and 4")
            time = _events_at(raw, at, count)[:, 1]
            first, last, high = int(time.min()), int(time.max()), overflow << 31
            if last >> 31:
                raise TrainError(f"{path}: an event at a negative time; download it again")
            rows.append((at, count, high, high | first, high | last))
        at += each * count
    return _Packets(*np.array(rows, dtype=np.int64).reshape(-1, 5).T)


def _skip_header(path: str) -> int:
    """The byte behind the text header: up to its end mark, or all lines with #, which no packet starts with."""
    with open(path, "rb") as file:
        start = file.read(_MAX_HEADER)
    at = 0
    while start[at : at + 1] == b"#":
        end = start.find(b"\n", at) + 1
        line = start[at:end].strip()
        if not end or (at == 0 and line != b"#!AER-DAT3.1"):
            break
        if line.startswith(b"#Format:") and line != b"#Format: RAW":
            raise TrainError(f"{path}: events stored as {line[8:].strip()!r}, expected b'RAW'; export it again")
        if line == b"#!END-HEADER":
            return end
        at = end
    else:
        if at:
            return at
    raise TrainError(f"{path}: starts with {start[:16]!r}, not with a header of AEDAT 3.1; download it again")


class _Trial(NamedTuple):
    """One sample: the part of recording `path` from `start` to `end` (microseconds, `end` excluded)."""

    path: str
    start: int
    end: int

    def events(self) -> tuple[Ints, Ints, Ints, Ints]:
        """x, y (0..127), polarity (1 = ON) and time since `start` (microseconds), each (n,), n > 0, of valid events.

        An event's data: bit 0 valid, 1 polarity, 2 to 16 y, 17 to 31 x (libcaer's polarity.h, the data set's README).
        """
        try:
            data, time = self._words()
        except OSError as err:
            raise TrainError(f"{self.path}: cannot read ({err.strerror or err}); restore the file") from err
        x, y, polarity = (data >> shift & mask for shift, mask in ((17, 0x7FFF), (2, 0x7FFF), (1, 1)))
        if max(x.max(), y.max()) >= _DVS_SIDE:
            raise TrainError(f"{self.path}: events outside {_DVS_SIDE}x{_DVS_SIDE} pixels; download it again")
        return x, y, polarity, time - self.start

    def _words(self) -> tuple[Ints, Ints]:
        """Data and time of the valid events, in the order they were recorded."""
        about = os.stat(self.path)
        packets, raw = _packets(self.path, about.st_mtime_ns, about.st_size), _map(self.path)
        touched = np.flatnonzero((packets.last >= self.start) & (packets.first < self.end))
        span = f"from {self.start} to {self.end} us"
        if (many := packets.events[touched].sum()) > _MAX_TRIAL:
            raise TrainError(f"{self.path}: about {many} events {span}, no trial has over {_MAX_TRIAL}; check its csv")
        words, times = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for i in touched:
            events = _events_at(raw, packets.at[i], packets.events[i])
            time = events[:, 1].astype(np.int64) | packets.high[i]
            kept = (events[:, 0] & 1 == 1) & (time >= self.start) & (time < self.end)
            words.append(events[kept, 0].astype(np.int64))
            times.append(time[kept])
        data = np.concatenate(words)
        if not len(data):
            raise TrainError(f"{self.path}: no valid events {span}; download it and its csv again")
        return data, np.concatenate(times)


class _Stream(NamedTuple):
    """One sample: the AEDAT 2.0 recording `name` in `tree`."""

    tree: Tree
    name: str

    def events(self) -> tuple[Ints, Ints, Ints, Ints]:
        """x, y (0..127), polarity (1 = ON) and time since the first (microseconds), each (n,), n > 0.

        Behind the header, lines with #, an event is its address and its time, 4 bytes each, big endian. The address
        of a DVS128's pixel: bit 0 polarity (0 = ON), 1 to 7 and 8 to 14 its place; bits 15 and 31 mark what is no
        pixel's event (jAER's DVS128, dat2mat.m). Rows are 127 - bits 1 to 7 here, columns 127 - bits 8 to 14, as in
        spikingjelly, with which DeepEISNN was trained: jAER itself shows the transpose.
        """
        where = self.tree.where(self.name)
        try:
            raw = self.tree.read(self.name, _MAX_HEADER + 8 * _MAX_TRIAL)
        except OSError as err:
            raise TrainError(f"{where}: cannot read ({err.strerror or err}); restore the file") from err
        if not re.match(rb"#!AER-DAT2\.0\s", raw):
            raise TrainError(f"{where}: starts with {raw[:16]!r}, not with a header of AEDAT 2.0; download it again")
        at = 0
        while raw.startswith(b"#", at):
            at = raw.find(b"\n", at) + 1 or len(raw)
        if (len(raw) - at) % 8:
            raise TrainError(f"{where}: {len(raw) - at} bytes of events, expected 8 each; download it again")
        words = np.frombuffer(raw, ">u4", offset=at).astype(np.uint32).reshape(-1, 2)
        address, time = words[words[:, 0] & 0x80008000 == 0].T
        if not len(address):
            raise TrainError(f"{where}: no events; download it again")
        if address.max() >> 15:
            raise TrainError(f"{where}: address {address.max():#x} is no pixel of a DVS128; download it again")
        row, column = ((127 - (address >> shift & 127)).astype(np.int64) for shift in (1, 8))
        since = (time - time[0]).view(np.int32).astype(np.int64)  # modulo 2**32, as the clock counts
        return column, row, 1 - (address & 1).astype(np.int64), since - since.min()


@dataclass(frozen=True, eq=False)
class _Trials:
    """Reads samples as frames of counts: [t, p, y, x] is how many events of polarity p fell in frame t."""

    trials: tuple[_Trial | _Stream, ...]
    steps: int
    bin_us: int | None

    def __call__(self, indices: Ints) -> Floats:
        shape = (self.steps, 2, _DVS_SIDE, _DVS_SIDE)
        out = np.empty((len(indices), *shape), dtype=np.float32)
        for slot, i in enumerate(indices):
            x, y, polarity, time = self.trials[i].events()
            frame = frame_of(time, self.steps, self.bin_us)
            kept = frame < self.steps
            place = np.ravel_multi_index((frame[kept], polarity[kept], y[kept], x[kept]), shape)
            out[slot] = np.bincount(place, minlength=int(np.prod(shape))).reshape(shape)
        return out


def load_dvsgesture(root: Path, steps: int, bin_us: int | None) -> Dataset:
    """DVS128 Gesture (Amir et al. 2017): 128x128, 11 gestures, from the unpacked original release.

    A sample is one line of a recording's labels, `userXX_LIGHT_labels.csv`. A recording is read through once, when its
    first sample is asked for, and mapped after that; nothing is written.
    """
    folders = [root / "DvsGesture", root / "dvsgesture" / "DvsGesture", root / "dvsgesture", root]
    base = next((folder for folder in folders if (folder / "trials_to_train.txt").exists()), None)
    if base is None:
        for archive in (folder / "DvsGesture.tar.gz" for folder in folders):
            if archive.exists():
                raise TrainError(f"{archive}: still packed; unpack it (tar xf) and give the folder with --data-dir")
        raise not_found("dvsgesture", "trials_to_train.txt (of DvsGesture)", folders)
    splits, seen, listing = [], set[str](), ""
    for part in ("train", "test"):
        trials, labels = [], []
        where = base / f"trials_to_{part}.txt"
        for name in text_lines(read_file(where, _MAX_TEXT), where):
            if not re.fullmatch(r"[\w-]+\.aedat", name) or name in seen:
                why = "listed twice" if name in seen else "no name of a recording"
                raise TrainError(f"{where}: {name[:80]!r}: {why}; download it again")
            seen.add(name)
            recording, csv = base / name, base / f"{name.removesuffix('.aedat')}_labels.csv"
            listing += f"{part} {name} {recording.stat().st_size}\n"
            for label, start, end in _gesture_labels(csv):
                trials.append(_Trial(str(recording), start, end))
                labels.append(label)
                listing += f"{label} {start} {end}\n"
        found = checked_labels(np.array(labels, dtype=np.int64), len(trials), where, len(_GESTURES))
        splits.append(Split(found, _Trials(tuple(trials), steps, bin_us)))
    checksum = {"names, sizes and labels": sha256(listing.encode())}  # hashing 5 GB would take long
    source, shape = "DVS128 Gesture (original files)", (2, _DVS_SIDE, _DVS_SIDE)
    return Dataset("dvsgesture", splits[0], splits[1], _GESTURES, shape, steps, source, checksum)


def _gesture_labels(path: Path) -> list[tuple[int, int, int]]:
    """(class from 0, start, end) of each trial; the file counts classes from 1. Trials may overlap: some really do."""
    lines = text_lines(read_file(path, _MAX_TEXT), path)
    if not lines or re.sub(r"\s", "", lines[0]) != "class,startTime_usec,endTime_usec":
        raise TrainError(f"{path}: does not start with class,startTime_usec,endTime_usec; download it again")
    rows = []
    for line in lines[1:]:
        fields = [field.strip() for field in line.split(",")]
        numbers = [int(field) for field in fields if re.fullmatch(r"[0-9]{1,18}", field)]
        if len(fields) != 3 or len(numbers) != 3 or not 1 <= numbers[0] <= len(_GESTURES) or numbers[1] >= numbers[2]:
            raise TrainError(
                f"{path}: line {line[:80]!r} is no class 1..{len(_GESTURES)}, start and later end in microseconds; "
                f"download it again"
            )
        rows.append((numbers[0] - 1, numbers[1], numbers[2]))
    if not rows:
        raise TrainError(f"{path}: no trials; download it again")
    return rows


def load_cifar10dvs(root: Path, steps: int, bin_us: int | None, verify: bool) -> Dataset:
    """CIFAR10-DVS (Li et al. 2017): 128x128, a folder or zip of AEDAT 2.0 recordings for each class of CIFAR-10.

    There is no published split: of each class the first nine tenths, by name as text, are for training, the rest for
    testing, as spikingjelly splits it for DeepEISNN. verify: refuse other than 1000 recordings a class. A recording is
    read whenever its sample is asked for; nothing is written.
    """
    folders = [root / "CIFAR10DVS", root / "cifar10dvs", root]
    inner = [folder / sub for folder in folders for sub in ("extract", "download", "")]  # spikingjelly's, or directly
    base = next((f for f in inner if any((f / f"{CIFAR10[0]}{end}").exists() for end in ("", ".zip"))), None)
    if base is None:
        raise not_found("cifar10dvs", f"folder {CIFAR10[0]} or {CIFAR10[0]}.zip", folders)
    parts: tuple[list[tuple[int, _Stream]], list[tuple[int, _Stream]]] = ([], [])
    listing = ""
    for label, name in enumerate(CIFAR10):
        archive = base / f"{name}.zip"
        tree = Tree(str(base)) if (base / name).exists() or not archive.exists() else Tree(str(archive), "")
        sizes = sorted(tree.sizes([name]).items())
        found = {file: size for file, size in sizes if re.fullmatch(r"\w+/[^/.][^/]*\.aedat", file)}
        if len(found) < 2 or (verify and len(found) != 1000):
            raise TrainError(
                f"{tree.where(name)}: {len(found)} recordings (.aedat), expected {1000 if verify else '2 or more'}; "
                f"download {archive.name} again"
            )
        listing += "".join(f"{file} {size}\n" for file, size in found.items())
        for i, file in enumerate(found):
            parts[i >= len(found) * 9 // 10].append((label, _Stream(tree, file)))
    splits = []
    for part in parts:
        labels, streams = zip(*part, strict=True)
        splits.append(Split(np.array(labels, dtype=np.int64), _Trials(streams, steps, bin_us)))
    checksum = {"names and sizes": sha256(listing.encode())}  # hashing 8 GB would take long
    source, shape = "CIFAR10-DVS (original files)", (2, _DVS_SIDE, _DVS_SIDE)
    return Dataset("cifar10dvs", splits[0], splits[1], CIFAR10, shape, steps, source, checksum)
