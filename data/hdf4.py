"""HDF4 raster images of 8 bits (RIS8), read without the HDF library. All values are big endian.

Source: The HDF Group, "HDF Specification and Developer's Guide" (HDF 4.2): data descriptor block, tags.
"""

import struct
from pathlib import Path

import numpy as np

from util.errors import UserError
from util.files import not_read

MAGIC = b"\x0e\x03\x13\x01"
NULL = 1  # an unused descriptor
RUN_LENGTH = 11
NUMBER_TYPE = 106
DIMENSIONS_8, IMAGE_8, RUN_LENGTH_IMAGE_8 = 200, 202, 203  # files from before raster image groups
DIMENSIONS, IMAGE, COMPRESSED_IMAGE = 300, 302, 303
GROUP = 306
SPECIAL = 0x4000  # bit of a tag: the element is linked blocks, an external file, chunked or compressed
METHODS = {12: "IMCOMP", 13: "JPEG", 14: "grey JPEG", 15: "JPEG", 16: "grey JPEG"}


def read_raster(path):
    """The first raster image of an HDF4 file, uncompressed or run-length encoded: uint8 [rows, columns]."""
    try:
        return _raster(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        found = f"found {not_read(path, error)}" if isinstance(error, OSError) else error
        raise UserError(f"{path}: expected an HDF4 raster image; {found}") from error


def _raster(data):
    """See `read_raster`; raises ValueError."""
    elements = _elements(data)
    group = next((ref for tag, ref in elements if tag == GROUP), None)
    if group is not None:
        content = _element(data, elements, GROUP, group)
        members = dict(struct.iter_unpack(">HH", content[: len(content) // 4 * 4]))
    else:
        ref = next((ref for tag, ref in elements if tag in (IMAGE_8, RUN_LENGTH_IMAGE_8)), None)
        members = {tag: ref for tag in (DIMENSIONS_8, IMAGE_8, RUN_LENGTH_IMAGE_8) if (tag, ref) in elements}

    image = next(
        (tag for tag in (IMAGE, COMPRESSED_IMAGE, IMAGE_8, RUN_LENGTH_IMAGE_8) if tag in members), None
    )
    if image is None:
        raise ValueError(f"found none among the tags {sorted({tag for tag, _ in elements})}")
    rows, columns, method = _dimensions(data, elements, members)
    if image == RUN_LENGTH_IMAGE_8:
        method = RUN_LENGTH
    if method not in (0, RUN_LENGTH):
        name = METHODS.get(method, "of an unknown kind")
        raise ValueError(f"found compression {name} (tag {method}); only run-length is read")
    pixels = _element(data, elements, image, members[image])
    if method == RUN_LENGTH:
        pixels = _expanded(pixels)
    if len(pixels) != rows * columns:
        raise ValueError(f"found {len(pixels)} pixels for {rows} rows of {columns}")
    return np.frombuffer(pixels, np.uint8).reshape(rows, columns)


def _elements(data):
    """All data descriptors: {(tag, ref): (offset, length)}, in the file's order."""
    if data[:4] != MAGIC:
        raise ValueError(f"found a file that begins with {data[:4].hex() or 'nothing'}, not {MAGIC.hex()}")
    elements, block, seen = {}, len(MAGIC), set()
    while block:
        if block in seen:
            raise ValueError(f"found its block of descriptors at byte {block} linked in a circle")
        seen.add(block)
        count, following = struct.unpack(">HI", _bytes(data, block, 6))
        for tag, ref, offset, length in struct.iter_unpack(">HHII", _bytes(data, block + 6, 12 * count)):
            if tag != NULL:
                elements.setdefault((tag, ref), (offset, length))
        block = following
    return elements


def _dimensions(data, elements, members):
    """(rows, columns, compression tag) of the image among a group's members (tag -> ref)."""
    if DIMENSIONS in members:
        content = _bytes(_element(data, elements, DIMENSIONS, members[DIMENSIONS]), 0, 20)
        columns, rows, type_tag, type_ref, components, _, method, _ = struct.unpack(">iiHHhhHH", content)
        if components != 1:
            raise ValueError(f"found {components} components for each pixel; one is read")
        if (type_tag, type_ref) in elements:
            bits = _bytes(_element(data, elements, NUMBER_TYPE, type_ref), 0, 4)[2]
            if bits != 8:
                raise ValueError(f"found pixels of {bits} bits; 8 are read")
    elif DIMENSIONS_8 in members:
        content = _bytes(_element(data, elements, DIMENSIONS_8, members[DIMENSIONS_8]), 0, 4)
        columns, rows, method = *struct.unpack(">HH", content), 0
    else:
        raise ValueError(f"found an image without its dimensions (tag {DIMENSIONS})")
    if rows < 1 or columns < 1:
        raise ValueError(f"found an image of {rows} rows of {columns}")
    return rows, columns, method


def _element(data, elements, tag, ref):
    if (tag, ref) not in elements:
        is_special = (tag | SPECIAL, ref) in elements
        raise ValueError(
            f"found tag {tag}, reference {ref} {'in a special element' if is_special else 'missing'}"
        )
    return _bytes(data, *elements[tag, ref])


def _bytes(data, offset, length):
    if offset + length > len(data):
        raise ValueError(
            f"found a cut file: {length} bytes from byte {offset} on are needed, {len(data)} are there"
        )
    return data[offset : offset + length]


def _expanded(data):
    """Decode run lengths: a count n < 128 and n bytes to copy, or n and one byte to repeat n - 128 times."""
    pixels, position = bytearray(), 0
    while position < len(data):
        count = data[position]
        if count & 0x80:
            pixels += _bytes(data, position + 1, 1) * (count & 0x7F)
            position += 2
        else:
            pixels += _bytes(data, position + 1, count)
            position += 1 + count
    return bytes(pixels)
