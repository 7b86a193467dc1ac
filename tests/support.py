"""What several test files need: recordings and data sets to read, commands to run as a user would, what they
leave.
"""

import contextlib
import importlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.io import savemat

import engine_evaluate
import engine_reconstruct
import models_mae
import models_vit
from data.set_writer import spectrogram_set_writer
from radio.spectrogram import Spectrogram
from util import checkpoint, fetch, flops, transfer
from util.errors import reported

ROOT = Path(__file__).parents[1]
CAPTURES = ROOT.parent / "shared" / "data" / "recordings"

# A model of which a step takes milliseconds, for `models_mae.PRESETS` and `models_vit.PRESETS`.
NANO = {
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 8,
    "decoder_depth": 3,
    "decoder_num_heads": 2,
}

CLASSES = ["Noise", "NR", "LTE"]
FRONT_END = Spectrogram(n_fft=64, duration_s=0.01, image_size=(16, 16))
ACTIVITIES = ["box", "circle", "clean", "fall", "run", "walk"]
WAVESFM_NAMES = ["run", "walk", "fall", "box", "circle", "clean"]
FRAME_RATE_HZ = 61.44e6  # of MathWorks' frames
# An annotation of what `write_ci16` writes.
BAND = {
    "core:sample_start": 0,
    "core:sample_count": 3000,
    "core:freq_lower_edge": 2.39998e9,
    "core:freq_upper_edge": 2.40002e9,
    "core:label": "NR",
}

needs_captures = pytest.mark.skipif(
    not CAPTURES.is_dir(), reason=f"the shared captures are not there ({CAPTURES.name})"
)


def write_sigmf(
    folder: Path,
    data: bytes,
    datatype="cu8",
    name="a",
    captures=({"core:sample_start": 0},),
    annotations=(),
    data_name=None,
    **info,
) -> Path:
    """`info` without "core:"; a value of None leaves the key out. Returns the .sigmf-meta."""
    info = {"datatype": datatype, "version": "1.2.0", "sample_rate": 1e6, **info}
    info = {f"core:{key}": value for key, value in info.items() if value is not None}
    (folder / (data_name or f"{name}.sigmf-data")).write_bytes(data)
    meta = folder / f"{name}.sigmf-meta"
    meta.write_text(
        json.dumps({"global": info, "captures": list(captures), "annotations": list(annotations)})
    )
    return meta


def write_ci16(folder, name="a", duration_s=0.1, sample_rate_hz=200e3, seed=0, level=0.1, **info):
    """A ci16_le recording of noise and a tone that is switched on and off; returns the .sigmf-meta."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(duration_s * sample_rate_hz)) / sample_rate_hz
    iq = rng.standard_normal((len(time_s), 2)) @ [1, 1j] * level / 10
    iq += level * np.exp(2j * np.pi * (seed + 1) * 7e3 * time_s) * (time_s * 100 % 1 < 0.5)
    parts = np.stack([iq.real, iq.imag], axis=1) * 2**15
    captures = [{"core:sample_start": 0, "core:frequency": 2.4e9}]
    return write_sigmf(
        folder, parts.astype("<i2").tobytes(), "ci16_le", name, captures, sample_rate=sample_rate_hz, **info
    )


# Sets of spectrograms


def write_labelled_set(
    path, count=12, masks=True, labels=False, class_names=CLASSES, front_end=FRONT_END, recordings=0
):
    """Sample i has label i % 3, and a mask of that class on its upper half."""
    with spectrogram_set_writer(path, count, front_end, 1, class_names, masks, labels) as packed:
        for index in range(count):
            values = (
                np.random.default_rng(index).normal(-60, 5, (1, *front_end.image_size)).astype(np.float32)
            )
            about = {"name": f"{path.name} {index}"}
            if recordings:
                about |= {"name": "window", "path": f"r{index % recordings}", "start_s": index / 100}
            mask = np.zeros(front_end.image_size, np.uint8)
            mask[8:] = index % 3
            packed.add(values, about, mask if masks else None, index % 3 if labels else None)
    return path


def write_scenes(folder, count=20, kinds=("masks",), classes=CLASSES, used=3, size=16):
    """Spectrograms with a bright band whose level tells its class; labels are that class."""
    front_end = FRONT_END if size == 16 else Spectrogram(64, 0.01, (size, size))
    with spectrogram_set_writer(
        folder, count, front_end, 1, classes, "masks" in kinds, "labels" in kinds
    ) as packed:
        for index in range(count):
            rng, label = np.random.default_rng(index), index % used
            first = rng.integers(0, size // 2)
            mask = np.zeros((size, size), np.uint8)
            mask[first : first + size // 4] = label
            values = rng.normal(0, 1, (1, size, size)) + 12.0 * mask
            about = {
                "name": f"s{index}",
                "sample_rate_hz": 200e3,
                "center_freq_hz": 2.4e9,
                "num_samples": 2000,
            }
            scene = {
                "transmissions": [{"snr_db": -2.0 + 10 * label, "technology": CLASSES[label]}]
                if label
                else []
            }
            packed.add(
                values,
                about | {"scene": scene},
                *([mask] if "masks" in kinds else [None]),
                *([label] if "labels" in kinds else []),
            )
    return folder


# Pictures and frames


def write_png(path, seed=0, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (20, 30, 3) if mode == "RGB" else (20, 30)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), mode).save(path)


def write_pngs(folder, classes=("zigbee", "LTE", "ble"), count=3, **kwargs):
    for number, name in enumerate(classes):
        for sample in range(count):
            write_png(folder / name / f"{sample}.png", 100 * number + sample, **kwargs)


# Every 16th colour of MATLAB's parula(256) (R2017a and later), and the last.
PARULA = np.array(
    [
        [0.2422, 0.1504, 0.6603],
        [0.2704, 0.2138, 0.8346],
        [0.2813, 0.2985, 0.9397],
        [0.2710, 0.3860, 0.9898],
        [0.2006, 0.4803, 0.9906],
        [0.1716, 0.5655, 0.9393],
        [0.1288, 0.6408, 0.8910],
        [0.0433, 0.7039, 0.8242],
        [0.0770, 0.7468, 0.7224],
        [0.2061, 0.7808, 0.6065],
        [0.3671, 0.8021, 0.4563],
        [0.5886, 0.7913, 0.2833],
        [0.7945, 0.7554, 0.1570],
        [0.9523, 0.7284, 0.2237],
        [0.9938, 0.7974, 0.1974],
        [0.9601, 0.8963, 0.1507],
        [0.9769, 0.9839, 0.0805],
    ]
)


def through_parula(levels):
    """[rows, columns] from 0 to 1 -> uint8 [rows, columns, 3]."""
    positions = [*range(0, 256, 16), 255]
    colours = [np.interp(levels * 255, positions, PARULA[:, channel]) for channel in range(3)]
    return np.round(np.stack(colours, axis=-1) * 255).astype(np.uint8)


def columns_of(low_hz, high_hz, value, size=256):
    """Labels as the example paints them: `value` over the columns of a band, all rows."""
    values = np.zeros((size, size), np.uint8)
    first, last = (int((FRAME_RATE_HZ / 2 + edge) // (FRAME_RATE_HZ / size)) for edge in (low_hz, high_hz))
    values[:, first : last + 1] = value
    return values


def hdf4(*blocks):
    """An HDF4 file.

    A block is a list of (tag, ref, content); each gets an unused descriptor, and links to the next.
    """
    sizes = [6 + 12 * (len(block) + 1) for block in blocks]
    starts = np.cumsum([4, *sizes]).tolist()
    descriptors, contents, position = b"", b"", starts[-1]
    for block, following in zip(blocks, [*starts[1:-1], 0], strict=True):
        descriptors += struct.pack(">HI", len(block) + 1, following)
        for tag, ref, content in block:
            descriptors += struct.pack(">HHII", tag, ref, position + len(contents), len(content))
            contents += content
        descriptors += struct.pack(">HHII", 1, 0, 2**32 - 1, 2**32 - 1)
    return b"\x0e\x03\x13\x01" + descriptors + contents


def dimensions(columns, rows, method=0, components=1):
    return struct.pack(">iiHHhhHH", columns, rows, 106, 1, components, 0, method, 2)


def raster(pixels, columns=None, bits=8, image_tag=302, data=None, **kwargs):
    """The elements of a raster image: type of its numbers, dimensions, pixels, and the group of these."""
    data = pixels.tobytes() if data is None else data
    return [
        (106, 1, bytes([1, 3, bits, 0])),
        (300, 2, dimensions(columns or pixels.shape[1], pixels.shape[0], **kwargs)),
        (image_tag, 2, data),
        (306, 2, struct.pack(">4H", 300, 2, image_tag, 2)),
    ]


def write_frame(folder, technology, number, picture=None, labels=None, params=None):
    """A frame as published. `picture` is uint8 [rows, columns(, 3)]; labels of the three-class edition."""
    if labels is None:
        nr, lte = columns_of(-20e6, -10e6, 127), columns_of(5e6, 10e6, 255)
        labels = {"NR": nr, "LTE": lte, "LTE_NR": nr + lte}[technology]
    if picture is None:
        picture = through_parula(np.random.default_rng(number).random(labels.shape))
    folder = folder / "LTE_NR" if technology == "LTE_NR" else folder
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{technology}_frame_{number}"
    Image.fromarray(picture).save(f"{stem}.png")
    stem.with_suffix(".hdf").write_bytes(hdf4(raster(labels)))
    if params:
        savemat(f"{stem}.mat", {"params": params})
    return stem.with_suffix(".png")


def write_frames(folder, count=12, size=16):
    """`count` frames of each kind, as MathWorks' example publishes them."""
    nr, lte = (columns_of(*band, value, size) for band, value in (((-20e6, -5e6), 127), ((5e6, 25e6), 255)))
    for number in range(count):
        for technology, labels in (("NR", nr), ("LTE", lte), ("LTE_NR", nr + lte)):
            write_frame(folder, technology, number, labels=labels)
    return folder


def write_resaved(folder, number, spectrogram_db, labels, **metadata):
    folder.mkdir(exist_ok=True)
    savemat(folder / f"LTE_NR_spect_frame_{number}.mat", {"rxSpectrogram": spectrogram_db})
    savemat(folder / f"LTE_NR_labels_frame_{number}.mat", {"data": labels})
    if metadata:
        savemat(folder / f"LTE_NR_metadata_frame_{number}.mat", metadata)


def write_fork(folder, counts=(("train", 6), ("val", 3)), form="mat"):
    """The radio fork's folders, each numbered from 0."""
    for part, count in counts:
        (folder / part).mkdir(parents=True)
        for number in range(count):
            labels = columns_of(-20e6, -10e6, 127, 16) + columns_of(5e6, 10e6, 255, 16)
            values = np.random.default_rng([number, len(part)]).integers(0, 256, (16, 16)).astype(np.uint8)
            if form == "mat":
                write_resaved(folder / part / "LTE_NR", number, values - 90.0, labels, SNRdB=float(number))
            else:
                write_frame(folder / part, "LTE_NR", number, values, labels)
    return folder


# CSI and IQ in files of others


def write_mat(path, values, key="CSIamp"):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {key: values})
    return path


def amplitudes(level=42):
    """What a file holds: 342 × 2000, small on disk."""
    return np.full((342, 2000), level, np.uint8)


def write_ntu_fi(folder, parts=("train_amp", "test_amp"), count=1, level=42):
    for part, name, number in itertools.product(parts, ACTIVITIES, range(count)):
        write_mat(folder / part / name / f"{name}{number}.mat", amplitudes(level))
    return folder


def write_npz(path, count=6, **arrays):
    rng = np.random.default_rng(0)
    held = {
        "x": rng.uniform(10, 20, (count, 4, 10)),
        "label": np.array(["sit", "lie", "walk"] * (count // 3)),
    }
    np.savez(path, **{name: values for name, values in (held | arrays).items() if values is not None})
    return path


def write_npz_of_days(path):
    x = np.random.default_rng(0).random((24, 10, 30)).astype(np.float32) + 1
    return write_npz(path, x=x, label=np.array(["sit", "walk"] * 12), day=np.repeat(["D1", "D2", "D3"], 8))


def write_radioml(path, classes=24, snrs=(-20, 0, 18), each=4, samples=1024, seed=0, **changes):
    """As GOLD_XYZ_OSC.0001_1024.hdf5: X, Y, Z, sorted by class, then SNR.

    Class k is a tone at bin k of `classes`.
    """
    rows = [(label, snr) for label in range(classes) for snr in snrs for _ in range(each)]
    rng, time = np.random.default_rng(seed), np.arange(samples)
    iq = rng.standard_normal((len(rows), samples, 2)) * 0.1
    for row, (label, _) in enumerate(rows):
        tone = np.exp(2j * np.pi * (label + 0.5 - classes / 2) / classes * time)
        iq[row] += np.stack([tone.real, tone.imag], axis=1)
    content = {
        "X": iq.astype(np.float32),
        "Y": np.eye(classes, dtype=np.int64)[[label for label, _ in rows]],
        "Z": np.array([[snr] for _, snr in rows], np.int64),
    } | changes
    return write_hdf5(path, content)


def write_hdf5(path, content, **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            if values is not None:
                file[name] = values
        file.attrs.update(attributes)
    return path


def write_wavesfm(path, data="csi", shape=(3, 20, 20), classes=6, each=4, names=WAVESFM_NAMES, **changes):
    """As WavesFM's preprocessing: chunks of several rows, the names as JSON, and where each row is from."""
    labels = np.tile(np.arange(classes), each)
    values = np.random.default_rng(0).standard_normal((len(labels), *shape)).astype(np.float32)
    values += labels.reshape(-1, *[1] * len(shape))
    content = {data: values, "label": labels} | changes
    attributes = {"version": "v1", "mu": json.dumps([0.7]), "std": json.dumps([0.1])}
    if names is not None:
        attributes["labels"] = json.dumps(list(names)[:classes])
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, own in content.items():
            if own is not None and name == data:
                file.create_dataset(name, data=own, chunks=(min(4, len(own)), *own.shape[1:]))
            elif own is not None:
                file[name] = own
        file.attrs.update(attributes)
    return path


# Commands


def call(module, *flags):
    """Run a command's main in this process; returns its exit status."""
    try:
        with reported():
            module.main(module.get_args_parser().parse_args([str(flag) for flag in flags]))
    except SystemExit as exit_:
        return exit_.code
    return 0


def command(script, *flags, **kwargs):
    """The real command, as a process: subprocess.CompletedProcess with text output."""
    line = [sys.executable, str(ROOT / script), *(str(flag) for flag in flags)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, **kwargs)


def wait_for(condition, going_on=lambda: True, timeout_s=300):
    """What `condition` returns once that is true; fails as soon as `going_on` is false, or where nothing ever
    happens.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert going_on(), "ended too early"
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def largest_file(size_bytes):
    """A limit that the kernel keeps, on workers too: writing beyond it fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# What a run leaves


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def results(folder):
    return json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def loaded(folder, name=checkpoint.LAST):
    return checkpoint.load(folder / name)


def leaves(value, name=""):
    """(name, leaf) of a nested state."""
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from leaves(part, f"{name}.{number}")
    else:
        yield name, value


def assert_same_run(first, second):
    """Weights, optimizer state, random state and position equal to the last bit."""
    for part in ("model", "optimizer", "scaler", "rng", "step", "epoch"):
        ours, theirs = dict(leaves(first[part])), dict(leaves(second[part]))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            same = (
                torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
            )
            assert same, f"{part}{name}"


# The processes of a distributed run

# Forks of a server that has imported torch, which takes seconds
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["support", "at_work", "pytest", "main_finetune", "torch.utils.tensorboard", "sigmf"]
)
SHALLOW = NANO | {"decoder_depth": 1}


def free_port():
    """Not of those that the kernel gives to connections (from 32768 on): other tests run meanwhile."""
    while True:
        port = random.SystemRandom().randrange(15000, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _begin(module, flags, environment, output):
    """What a process does: its command, with what it prints in two files, a tiny preset, and pictures without
    contents.

    What the machine could do at best, for the log, is measured with matrices that take no time.
    """
    os.environ.update(environment)
    for descriptor, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{suffix}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    models_mae.PRESETS["mae_vit_nano"] = models_vit.PRESETS["vit_nano"] = SHALLOW
    flops.SIDE = {"cpu": 16, "cuda": 16}
    engine_reconstruct.reconstruction_figure = lambda *_: Figure(figsize=(1, 1))
    engine_evaluate.confusion_figure = engine_evaluate.prediction_sheet = (
        engine_reconstruct.reconstruction_figure
    )
    module = importlib.import_module(module)
    with reported():
        module.main(module.get_args_parser().parse_args(flags))


@dataclass
class Rank:
    process: object
    output: Path

    @property
    def pid(self):
        return self.process.pid

    @property
    def status(self):
        """The exit status, a negative signal, or None of a process that still runs."""
        return self.process.exitcode

    @property
    def out(self):
        return Path(f"{self.output}.out").read_text()

    @property
    def err(self):
        return Path(f"{self.output}.err").read_text()


def start(folder, world_size, module, *flags, **environment):
    """Start the processes of a run, as a launcher does; a single one without what a launcher sets.

    Args:
        folder: where what they print goes; module: "main_pretrain", or another with `main` and
            `get_args_parser`.

    Returns:
        A list of `Rank`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"OMP_NUM_THREADS": "1"}
    if world_size > 1:
        shared |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
        }
    ranks = []
    for rank in range(world_size):
        own = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}) | environment
        output = folder / f"{rank}-{time.monotonic_ns()}"
        process = _context.Process(target=_begin, args=(module, [str(flag) for flag in flags], own, output))
        with pytest.MonkeyPatch.context() as patch:  # for the server to find what it is to import
            patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
            process.start()
        ranks.append(Rank(process, output))
    return ranks


def wait(ranks, timeout_s=120):
    """Wait for all to end; those that do not are killed, and the test fails."""
    deadline = time.monotonic() + timeout_s
    for rank in ranks:
        rank.process.join(max(0, deadline - time.monotonic()))
    late = [number for number, rank in enumerate(ranks) if rank.process.is_alive()]
    for rank in ranks:
        rank.process.kill()
        rank.process.join()
    assert not late, (
        f"ranks {late} did not end within {timeout_s} s: {[ranks[number].err[-2000:] for number in late]}"
    )
    return [rank.status for rank in ranks]


def finish(folder, world_size, module, *flags, **environment):
    """Run to the end, which has to be a good one; the ranks."""
    ranks = start(folder, world_size, module, *flags, **environment)
    statuses = wait(ranks)
    assert statuses == [0] * world_size, [rank.err[-3000:] for rank in ranks]
    return ranks


# A web server that behaves as badly as a test wants, and a registry of a test's own


class Web:
    """What is served, how, and what was asked for.

    files: {path: bytes}. headers: of all files; about: {path: headers}, also of files that are not there.
    redirects: {path: address}. behaviours: of the next answers to a GET, then good ones; always: of all.
    requests: [(path, Range or None)].

    Behaviours: "drop", the connection ends in the middle; "hang", nothing comes after the middle; "drip", a
    byte now and then; "silent", no answer; "busy", status 503; "no range", the whole file; "any version", the
    range of whatever is there now; "chunked", without a length; "gzip", said to be compressed; "short", too
    small a length.
    """

    def __init__(self):
        self.files, self.redirects, self.headers, self.about = {}, {}, {"ETag": '"1"'}, {}
        self.behaviours, self.always = [], ""
        self.requests = []
        self.slow_s = 0  # between pieces of 64 KiB
        self.released = threading.Event()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web = None

    def log_message(self, *args):
        pass

    def do_GET(self):
        web, asked, path = self.web, self.headers.get("Range"), self.path.partition("?")[0]
        way = web.always
        if self.command == "GET":
            web.requests.append((path, asked))
            way = web.behaviours.pop(0) if web.behaviours else way
        if way == "silent":
            web.released.wait(20)
        if path in web.redirects:
            return self.answer(302, b"", Location=web.redirects[path])
        if way == "busy" or path not in web.files:
            return self.answer(503 if way == "busy" else 404, b"none", **web.about.get(path, {}))
        data, headers = web.files[path], web.headers | web.about.get(path, {})
        current = self.headers.get("If-Range") in (None, *headers.values()) or way == "any version"
        if not asked or not current or way == "no range":
            return self.answer(200, data, way, **headers)
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(data):
            return self.answer(416, b"")
        headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return self.answer(206, data[start:], way, **headers)

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, body, way="", **headers):
        length = {"Content-Length": len(body) - 1000 * (way == "short")}
        headers |= {"Transfer-Encoding": "chunked"} if way == "chunked" else length
        headers |= {"Content-Encoding": "gzip"} if way == "gzip" else {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(OSError):  # a client that is gone
                self.send_body(body[: len(body) // 2] if way in ("drop", "hang") else body, way)
        self.close_connection = way != ""

    def send_body(self, body, way):
        web, size = self.web, 1 if way == "drip" else 2**16
        for begin in range(0, len(body), size):
            piece = body[begin : begin + size]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if way == "chunked" else piece)
            if web.slow_s or way == "drip":
                web.released.wait(web.slow_s or 0.02)
        if way == "chunked":
            self.wfile.write(b"0\r\n\r\n")
        if way == "hang":
            web.released.wait(20)


@contextlib.contextmanager
def site(monkeypatch, tmp_path):
    """A `Web`, a registry of its own (see `register`), and an empty cache in `tmp_path / "home"`."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(fetch, "REGISTRY", tmp_path / "downloads.json")
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "*")
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"web": web}))
    server.daemon_threads, server.handle_error = True, lambda *args: None
    web.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        web.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def register(tmp_path, *rows):
    (tmp_path / "downloads.json").write_text(json.dumps(rows))


def table_row(name="tiny", kind="weights", **fields):
    fields = {
        "url": f"http://weights.invalid/{name}.pth",
        "licence": "MIT",
        "holds": f"what {name} holds",
        "citation": "Nobody",
        "use": f"python use.py {name} PATH",
    } | fields
    return {"name": name, "kind": kind, **fields}


def files(folder):
    """What is below a folder, without locks and records."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if not name.endswith((".lock", ".json")))
