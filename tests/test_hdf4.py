"""data.hdf4: against files of the real HDF4 library, and against bytes put together from its specification."""

import shutil
import struct
import subprocess

import numpy as np
import pytest
from support import hdf4, raster

from data.hdf4 import read_raster
from util.errors import UserError

needs_hdf4 = pytest.mark.skipif(
    not shutil.which("r8tohdf"), reason="r8tohdf is not there (Debian: hdf4-tools)"
)


def read(tmp_path, content):
    path = tmp_path / "a.hdf"
    path.write_bytes(content)
    return read_raster(path)


def labels(seed, rows, columns):
    """A picture of stripes, some of noise: long runs and short ones."""
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.choice([0, 127, 255], size=(1, columns)), rows, axis=0).astype(np.uint8)
    values[: rows // 3, : columns // 2] = rng.integers(0, 256, (rows // 3, columns // 2))
    values[rows // 2 :] = 255
    return values


PIXELS = labels(1, 4, 7)


def r8tohdf(tmp_path, images, *flags):
    names = [f"{number}.raw" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        (tmp_path / name).write_bytes(image.tobytes())
    rows, columns = images[0].shape
    line = ["r8tohdf", str(columns), str(rows), "a.hdf", *flags, *names]
    subprocess.run(line, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "a.hdf"


@needs_hdf4
@pytest.mark.parametrize("flag", ["-r", "-c"])
@pytest.mark.parametrize(("rows", "columns"), [(256, 256), (128, 300), (5, 7), (1, 1)])
def test_reads_what_the_hdf4_library_writes(tmp_path, flag, rows, columns):
    image = labels(rows, rows, columns)

    np.testing.assert_array_equal(read_raster(r8tohdf(tmp_path, [image], flag)), image)


@needs_hdf4
@pytest.mark.parametrize("flag", ["-r", "-c"])
def test_reads_the_first_of_so_many_images_that_descriptors_are_linked(tmp_path, flag):
    images = [labels(seed, 6, 9) for seed in range(12)]
    (tmp_path / "palette").write_bytes(bytes(range(256)) * 3)

    path = r8tohdf(tmp_path, images, "-p", "palette", flag)

    assert struct.unpack(">I", path.read_bytes()[6:10])[0] > 0
    np.testing.assert_array_equal(read_raster(path), images[0])


@needs_hdf4
def test_other_compression_of_the_library_is_named(tmp_path):
    (tmp_path / "palette").write_bytes(bytes(range(256)) * 3)

    with pytest.raises(UserError, match="IMCOMP"):
        read_raster(r8tohdf(tmp_path, [labels(0, 8, 8)], "-p", "palette", "-i"))


def test_reads_a_file_put_together_from_the_specification(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, hdf4(raster(PIXELS))), PIXELS)


def test_follows_linked_blocks_of_descriptors(tmp_path):
    number_type, size, image, group = raster(PIXELS)

    np.testing.assert_array_equal(read(tmp_path, hdf4([group, image], [], [size, number_type])), PIXELS)


def test_reads_images_of_files_without_groups(tmp_path):
    size = (200, 5, struct.pack(">HH", 7, 4))
    runs = b"".join(bytes([7]) + row.tobytes() for row in PIXELS[:2]) + bytes([0x80 | 14, 255])

    np.testing.assert_array_equal(read(tmp_path, hdf4([size, (202, 5, PIXELS.tobytes())])), PIXELS)
    np.testing.assert_array_equal(read(tmp_path, hdf4([size, (203, 5, runs)])), PIXELS)


def test_the_group_says_which_image_is_meant(tmp_path):
    other = (302, 1, bytes(28))

    np.testing.assert_array_equal(read(tmp_path, hdf4([other, *raster(PIXELS)])), PIXELS)


def test_runs_reach_over_rows(tmp_path):
    runs = bytes([0x80 | 127, 9, 0x80 | 3, 9, 2, 1, 2])
    expected = np.array([9] * 130 + [1, 2]).reshape(11, 12)

    found = read(tmp_path, hdf4(raster(expected, image_tag=303, data=runs, method=11)))

    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begins with nothing"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "begins with 89484446"),
        (hdf4([]), "found none"),
        (hdf4(raster(PIXELS)[:3]), "found none"),
        (hdf4([(306, 2, b"")]), "found none"),
        (hdf4(raster(PIXELS)[2:]), "tag 300, reference 2 missing"),
        (hdf4([(202, 2, PIXELS.tobytes())]), "without its dimensions"),
        (hdf4(raster(PIXELS, columns=8)), "28 pixels for 4 rows of 8"),
        (hdf4(raster(PIXELS, columns=-7)), "4 rows of -7"),
        (hdf4(raster(PIXELS, components=3)), "3 components"),
        (hdf4(raster(PIXELS, bits=16)), "16 bits"),
        (hdf4(raster(PIXELS, image_tag=303, method=13)), "JPEG"),
        (hdf4(raster(PIXELS, image_tag=303, method=99)), "tag 99"),
        (hdf4(raster(PIXELS, image_tag=303, method=11, data=b"\x85")), "cut"),
        (hdf4(raster(PIXELS, image_tag=303, method=11, data=b"\x85\x00")), "5 pixels for 4 rows of 7"),
        (hdf4([*raster(PIXELS)[:2], (302 | 0x4000, 2, bytes(9)), raster(PIXELS)[3]]), "special element"),
        (b"\x0e\x03\x13\x01" + struct.pack(">HI", 0, 4), "circle"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(tmp_path, content, words):
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "a.hdf"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"a\.hdf: expected an HDF4 raster image; found no such file"):
        read_raster(tmp_path / "a.hdf")


@pytest.mark.parametrize("image_tag", [302, 303])
def test_a_file_cut_anywhere_is_an_error(tmp_path, image_tag):
    runs = b"".join(bytes([7]) + row.tobytes() for row in PIXELS)
    whole = hdf4(
        raster(PIXELS, image_tag=image_tag, **({"method": 11, "data": runs} if image_tag == 303 else {}))
    )
    np.testing.assert_array_equal(read(tmp_path, whole), PIXELS)

    for length in range(len(whole)):
        with pytest.raises(UserError):
            read(tmp_path, whole[:length])


def test_damaged_bytes_end_in_a_users_mistake_or_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(hdf4(raster(PIXELS)), np.uint8)
    outcomes = set()
    for _ in range(500):
        damaged = whole.copy()
        damaged[rng.integers(4, len(whole), 3)] = rng.integers(0, 256, 3)
        try:
            outcomes.add(read(tmp_path, damaged.tobytes()).dtype)
        except UserError:
            outcomes.add("error")
    assert outcomes == {np.dtype(np.uint8), "error"}
