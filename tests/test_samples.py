"""Streams of samples: as files of the same bytes, however they come, and honest about their end."""

import io

import numpy as np
import pytest
from support import write_sigmf

from radio.recordings import open_recording
from radio.samples import DATATYPES, IqStream, full_datatype
from util.errors import UserError


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data, most):
        self.data, self.most = io.BytesIO(data), most

    def readinto(self, buffer):
        return self.data.readinto(memoryview(buffer)[: self.most])


def stream(data, datatype, most=1 << 20):
    return IqStream(Trickle(data, most), full_datatype("a", datatype), "standard input")


@pytest.mark.parametrize("most", [1, 3, 1000])
@pytest.mark.parametrize(
    "datatype",
    [
        name if name.endswith("8") else f"{name}{order}"
        for name in DATATYPES
        for order in (("",) if name.endswith("8") else ("_le", "_be"))
    ],
)
def test_a_stream_is_what_a_file_of_its_bytes_is(tmp_path, datatype, most):
    rng = np.random.default_rng(0)
    kind = {"f": ">f", "i": ">i", "u": ">u"}[datatype[1]] + {"64": "8", "32": "4", "16": "2"}.get(
        datatype[2:4], "1"
    )
    data = (
        (rng.integers(0, 100, 40))
        .astype(kind if datatype.endswith("be") else kind.replace(">", "<"))
        .tobytes()
    )
    meta = write_sigmf(tmp_path, data, datatype)
    [recording] = open_recording(meta)
    source = stream(data, datatype, most)
    parts = [source.read(count) for count in (7, 1, 100)]
    assert [len(part) for part in parts] == [7, 1, recording.num_samples - 8]
    np.testing.assert_array_equal(np.concatenate(parts), recording.read(0, recording.num_samples))
    assert len(source.read(5)) == 0
    assert source.num_samples == recording.num_samples
    assert all(part.dtype == np.complex64 for part in parts)


def test_a_stream_that_ends_in_a_sample_gives_the_whole_ones_first():
    source = stream(bytes(range(11)), "ci16")
    assert len(source.read(100)) == 2
    with pytest.raises(
        UserError, match=r"^standard input: expected whole samples of 4 bytes \(ci16_le\); found 3 bytes "
    ):
        source.read(100)


def test_a_stream_of_less_than_a_sample_is_refused_at_once():
    with pytest.raises(UserError, match="found 1 bytes after the last"):
        stream(b"a", "ci8").read(4)


def test_the_first_sample_that_is_not_finite_is_named():
    values = np.zeros(20, "<f4")
    values[17] = np.nan
    source = stream(values.tobytes(), "cf32")
    source.read(5)
    with pytest.raises(UserError, match=r"expected finite samples, found .*nanj.* at sample 8"):
        source.read(5)
