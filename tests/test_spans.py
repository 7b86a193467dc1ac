"""Samples on their way to a device: what the file holds, whatever the pieces, the threads and the order of
streams.
"""

import contextlib
import threading

import numpy as np
import pytest
import torch
from support import write_sigmf

from labelling import spans
from labelling.spans import Channels, spans_on
from radio.recordings import open_recording
from radio.samples import component_of
from util.errors import UserError


def recordings(folder, datatype, channels=1, samples=1000):
    """Of random bytes, but for floats, which are to be finite."""
    kind = component_of(datatype)[0].str
    rng = np.random.default_rng(0)
    shape = (samples, channels, 1 if datatype[0] == "r" else 2)
    values = (
        rng.standard_normal(shape) if "f" in kind else rng.integers(0, 256, (*shape, int(kind[-1])), np.uint8)
    )
    data = (values.astype(kind) if "f" in kind else values).tobytes()
    return open_recording(write_sigmf(folder, data, datatype, num_channels=channels))


def as_complex(channels, values, number):
    """What was read of a channel, as `Recording.read` scales it: numpy complex64."""
    iq = values[:, channels.numbers[number]].contiguous()
    scale = 1.0 if iq.is_floating_point() else 2.0 ** (1 - 8 * iq.element_size())
    return torch.view_as_complex(iq.float() * scale).numpy()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [("ci16_le", torch.int16), ("ci8", torch.int8), ("cu8", torch.int8), ("cu16_le", torch.int16)]
    + [(name, torch.float32) for name in ("ci16_be", "ci32_le", "cf32_le", "ri16_le")],
)
def test_samples_are_those_of_the_recording(tmp_path, datatype, dtype, count):
    found = recordings(tmp_path, datatype, count)
    for chosen in (found, found[-1:]):
        channels = Channels(chosen)
        out = channels.empty(300)
        channels.read(450, out)
        assert channels.dtype == out.dtype == dtype
        assert channels.sample_bytes == out[0].numel() * out.element_size()
        for number, one in enumerate(chosen):
            assert np.array_equal(as_complex(channels, out, number), one.read(450, 300))


def test_what_cannot_be_read_is_said_as_the_recording_says_it(tmp_path):
    [one] = recordings(tmp_path, "ci16_le")
    channels = Channels([one])
    for start in (-1, 701):
        with pytest.raises(
            ValueError, match=r"a.sigmf-meta: start=-?\d+ count=300 is outside of the 1000 samples"
        ):
            channels.read(start, channels.empty(300))
    with open(one.layout.data_file, "r+b") as file:
        file.truncate(2000)
    channels.read(200, channels.empty(300))
    with pytest.raises(UserError, match=r"a.sigmf-data: .*expected 4000 bytes.* found 2000"):
        channels.read(201, channels.empty(300))
    one.layout.data_file.unlink()
    with pytest.raises(UserError, match=r"a.sigmf-data: expected .*; found no such file"):
        channels.read(0, channels.empty(300))


@pytest.mark.parametrize("piece", [1, 7, 4096])
@pytest.mark.parametrize("threads", [1, 4])
def test_spans_come_in_order_whatever_the_pieces(tmp_path, monkeypatch, piece, threads):
    monkeypatch.setattr(spans, "PIECE_BYTES", piece * 4)
    [one] = recordings(tmp_path, "ci16_le")
    channels, wanted = Channels([one]), [(0, 100), (75, 100), (150, 1), (151, 0), (200, 800)]
    entered = []

    @contextlib.contextmanager
    def busy():
        entered.append(1)
        yield

    found = [
        as_complex(channels, values, 0)
        for values in spans_on(torch.device("cpu"), channels, wanted, threads, busy)
    ]
    assert len(entered) == sum(-(-count // piece) for _, count in wanted)
    for values, (start, count) in zip(found, wanted, strict=True):
        assert np.array_equal(values, one.read(start, count))


def test_an_error_of_a_piece_ends_all(tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "PIECE_BYTES", 40)
    [one] = recordings(tmp_path, "ci16_le")
    one.layout.data_file.write_bytes(one.layout.data_file.read_bytes()[:1000])
    before = threading.active_count()
    coming = spans_on(torch.device("cpu"), Channels([one]), [(0, 200), (200, 400), (600, 400)], 3)
    next(coming)
    with pytest.raises(UserError, match=r"a.sigmf-data"):
        next(coming)
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_computes_with_the_samples_of_the_recording(tmp_path, monkeypatch):
    """Work on one span is still queued when the next is copied."""
    monkeypatch.setattr(spans, "PIECE_BYTES", 4 * 30)
    [one] = recordings(tmp_path, "ci16_le")
    channels, wanted, found = Channels([one]), [(start, 200) for start in range(0, 801, 50)], []
    for values in spans_on(torch.device("cuda"), channels, wanted, threads=3):
        torch.cuda._sleep(10**6)
        found.append(values.clone())
    for values, (start, count) in zip(found, wanted, strict=True):
        assert np.array_equal(as_complex(channels, values.cpu(), 0), one.read(start, count))
