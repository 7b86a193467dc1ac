"""IQ in WAV files: where the samples lie, and what the header says of them.

No library gives what a `Layout` needs: the first byte of the samples, and the `auxi` chunk with the centre
frequency. Python's `wave` and SciPy read no `auxi`, refuse a length of 0, or read 24 bits only as a whole.
RIFF: "Multimedia Programming Interface and Data Specifications 1.0"; RF64: EBU Tech 3306.
"""

import re
import struct
from typing import NamedTuple

from util.errors import UserError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
DATATYPES = {(PCM, 8): "cu8", (PCM, 16): "ci16_le", (PCM, 24): "ci24_le", (PCM, 32): "ci32_le"}
DATATYPES |= {(FLOAT, 32): "cf32_le", (FLOAT, 64): "cf64_le"}
MOST_CHUNKS, MOST_AUXI_BYTES = 1000, 2**16
UNKNOWN = (0, 2**32 - 1)  # lengths that a writer puts there before it knows better


class Wav(NamedTuple):
    datatype: str
    channels: int  # of IQ: two of the file each
    sample_rate_hz: int
    center_freq_hz: float | None
    byte_offset: int
    num_bytes: int
    is_cut: bool  # the header names more bytes than the file has


def is_iq(path):
    """Whether a WAV file may hold IQ: two channels for each. A damaged header counts, so that opening reports it."""
    try:
        return _chunks_of(path)["fmt "][1] % 2 == 0
    except (OSError, UserError):
        return True


def read_header(path, size_bytes):
    """The `Wav` of a file of so many bytes.

    A length of 0, an unknown one, and one that does not fit into 32 bits mean: to the end of the file.

    Raises:
        UserError: a damaged header, an odd number of channels, or a compressed format.
    """
    found = _chunks_of(path)
    kind, channels, rate, _, block, bits = found["fmt "]
    datatype = DATATYPES.get((kind, bits))
    if channels < 2 or channels % 2 or datatype is None or block != channels * bits // 8:
        expected = "expected IQ in two channels, of 8, 16, 24 or 32 bits or float"
        raise UserError(
            f"{path}: {expected}, found {channels} of {bits} bits, format {kind}, {block} bytes a frame"
        )
    start, stated = found["data"]
    rest = size_bytes - start
    wrapped = rest >= 2**32 and (rest - stated) // 2**32  # the length lacks bits
    to_end = stated in UNKNOWN or stated > rest or wrapped
    center = _center_of(found.get("auxi", b""))
    is_cut = stated > rest and stated not in UNKNOWN
    return Wav(datatype, channels // 2, rate, center, start, rest if to_end else stated, is_cut)


def _chunks_of(path):
    """{"fmt ": its numbers, "data": (first byte, stated bytes), and maybe "auxi": bytes}."""
    found, long_bytes = {}, None
    with open(path, "rb") as file:
        kind, _, form = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
        if kind not in (b"RIFF", b"RF64", b"BW64") or form != b"WAVE":
            raise UserError(f"{path}: expected a WAV file, found none (it begins with {kind})")
        for _ in range(MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8:
                break
            name, size = struct.unpack("<4sI", head)
            start = file.tell()
            if name == b"ds64":
                long_bytes = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
            elif name == b"fmt ":
                content = file.read(min(size, 40)).ljust(40, b"\0")
                numbers = list(struct.unpack("<HHIIHH", content[:16]))
                if numbers[0] == EXTENSIBLE:  # the format follows in a GUID
                    numbers[0] = struct.unpack("<H", content[24:26])[0]
                found["fmt "] = numbers
            elif name == b"auxi":
                found["auxi"] = file.read(min(size, MOST_AUXI_BYTES))
            elif name == b"data":
                if size == 2**32 - 1 and long_bytes is not None:
                    size = long_bytes
                found["data"] = start, size
                if "auxi" in found or size in UNKNOWN:
                    break
            file.seek(start + size + size % 2)
    if missing := {"fmt ", "data"} - found.keys():
        raise UserError(f"{path}: expected a whole WAV header, found no chunk {sorted(missing)[0]!r}")
    return found


def _center_of(auxi):
    """The centre frequency in an `auxi` chunk, of SDR# and HDSDR (binary) or SDR Console (XML); or None."""
    text = auxi.decode("utf-16-le", "ignore") if auxi[1:2] == b"\0" else auxi.decode("latin1")
    if match := re.search(r'RadioCenterFreq="(\d+)"', text):
        return float(match[1])
    # two times of 16 bytes, then the centre frequency
    hertz = struct.unpack("<I", auxi[32:36])[0] if len(auxi) >= 36 and "<" not in text[:4] else 0
    return float(hertz) if hertz else None
