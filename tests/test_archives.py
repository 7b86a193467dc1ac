"""Archives unpack whole into their folder, or not at all."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile

import pytest
from support import largest_file

from util import archives
from util.archives import RefusedError, unpack
from util.errors import UserError

FILES = {"set/a.bin": bytes(range(256)) * 2, "set/deep/b.txt": b"text\n", "set/empty": b""}


def member(name, data=b"", kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(path, *members, mode="w:gz", form=tarfile.PAX_FORMAT):
    with tarfile.open(path, mode, format=form) as file:
        for info, data in members:
            file.addfile(info, io.BytesIO(data))
    return path


def zip_(path, *members, compression=zipfile.ZIP_DEFLATED):
    """Members are (name, data) or (name, data, mode)."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data, *mode in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            info.external_attr = (mode[0] if mode else 0) << 16
            file.writestr(info, data)
    return path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(archive, folder, reason, **limits):
    """The archive is refused for this reason, in one line, and leaves nothing anywhere."""
    before = names(folder)
    with pytest.raises(RefusedError, match=reason) as error:
        unpack(archive, folder / "target", **limits)
    assert str(error.value).startswith(f"{archive}: expected ")
    assert names(folder) == before


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip", "stored"])
def test_files_come_out_as_they_went_in(tmp_path, mode):
    archive = tmp_path / "archive"  # the name says nothing of the kind
    if mode.startswith("w"):
        folders = [member("./set/", kind=tarfile.DIRTYPE, mode=0o700), member("set/bare", kind=tarfile.DIRTYPE)]
        tar(archive, *folders, *(member(name, data, mode=0o6777) for name, data in FILES.items()), mode=mode)
    else:
        compression = zipfile.ZIP_STORED if mode == "stored" else zipfile.ZIP_DEFLATED
        zip_(archive, ("set/bare/", b""), *((name, data, 0o106777) for name, data in FILES.items()), compression=compression)
    unpack(archive, tmp_path / "new" / "target")
    folder = tmp_path / "new" / "target"
    assert names(folder) == ["set", "set/a.bin", "set/bare", "set/deep", "set/deep/b.txt", "set/empty"]
    for name, data in FILES.items():
        assert (folder / name).read_bytes() == data
        assert not (folder / name).stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)
    assert names(tmp_path / "new")[0] == "target"


def test_a_windows_zip_has_folders_too(tmp_path):
    unpack(zip_(tmp_path / "a.zip", ("set\\x.txt", b"x")), tmp_path / "target")
    assert (tmp_path / "target" / "set" / "x.txt").read_bytes() == b"x"


OUTSIDE = ["../evil", "a/../../evil", "/evil", "//evil", "C:\\evil", "c:evil", "..\\evil", "\\evil", "a/..", ".."]


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_the_folder(tmp_path, name):
    folder = tmp_path / "inner"
    folder.mkdir()
    good = ("good", b"x")
    refused(tar(tmp_path / "a.tar.gz", member(*good), member(name, b"x")), folder, "stay in their folder")
    refused(tar(tmp_path / "d.tar.gz", member(*good), member(name, kind=tarfile.DIRTYPE)), folder, "stay in their folder")
    refused(zip_(tmp_path / "a.zip", good, (name, b"x")), folder, "stay in their folder")
    assert names(tmp_path) == ["a.tar.gz", "a.zip", "d.tar.gz", "inner"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_no_links_and_devices(tmp_path, kind):
    folder = tmp_path / "inner"
    folder.mkdir()
    odd = member("odd", kind=kind, linkname=str(tmp_path))
    refused(tar(tmp_path / "a.tar", odd, member("odd/evil", b"x"), mode="w"), folder, "found a link, device")
    refused(tar(tmp_path / "b.tar", member("good", b"x"), odd, mode="w"), folder, "found a link, device.*'odd'")
    assert names(tmp_path) == ["a.tar", "b.tar", "inner"]


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_no_links_and_devices_in_a_zip(tmp_path, mode):
    refused(zip_(tmp_path / "a.zip", ("odd", b"/etc", mode | 0o777), ("odd/evil", b"x")), tmp_path, "found a link, device")


@pytest.mark.parametrize("second", ["a", "./a", "a/b", "x/../a"])
def test_no_member_in_the_place_of_another(tmp_path, second):
    reason = "stay in" if ".." in second else "in the place of another"
    refused(tar(tmp_path / "a.tar.gz", member("a", b"1"), member(second, b"2")), tmp_path, reason)
    with pytest.warns(UserWarning, match="Duplicate") if second == "a" else contextlib.nullcontext():
        zip_(tmp_path / "a.zip", ("a", b"1"), (second, b"2"))
    refused(tmp_path / "a.zip", tmp_path, reason)
    refused(tar(tmp_path / "d.tar", member("a", b"1"), member("a", kind=tarfile.DIRTYPE), mode="w"), tmp_path, "another")


def test_a_link_in_the_way_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "target").symlink_to(victim)
    (tmp_path / ".target.tmp").symlink_to(victim)
    with pytest.raises(UserError, match="could not be unpacked"):
        unpack(tar(tmp_path / "a.tar", member("x", b"x"), mode="w"), tmp_path / "target")
    assert names(victim) == []


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_bomb(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(archives, "RATIO_FREE", 2**16)
    plain = tar(tmp_path / "plain", member("a", bytes(4 * 2**20)), mode="w").read_bytes()
    (tmp_path / "plain").unlink()
    (tmp_path / "bomb").write_bytes(pack(plain))
    refused(tmp_path / "bomb", tmp_path, "200 times its size")
    monkeypatch.undo()
    refused(tmp_path / "bomb", tmp_path, "at most 1000000 bytes", largest=10**6)
    unpack(tmp_path / "bomb", tmp_path / "target")


def test_a_zip_bomb_whose_header_lies(tmp_path, monkeypatch):
    archive = zip_(tmp_path / "a.zip", ("a", bytes(4 * 2**20)))
    refused(archive, tmp_path, "at most 1000000 bytes", largest=10**6)
    data = archive.read_bytes()
    size = (4 * 2**20).to_bytes(4, "little")
    assert data.count(size) == 2
    archive.write_bytes(data.replace(size, (100).to_bytes(4, "little")))
    refused(archive, tmp_path, "damaged")
    monkeypatch.setattr(archives, "RATIO_FREE", 2**16)
    many = zip_(tmp_path / "b.zip", *((str(number), bytes(2**20)) for number in range(20)))
    refused(many, tmp_path, "200 times its size")


def test_no_compression_that_inflates_in_one_piece(tmp_path):
    refused(zip_(tmp_path / "a.zip", ("a", bytes(10**5)), compression=zipfile.ZIP_BZIP2), tmp_path, "compressed otherwise")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_name_that_would_fill_the_memory(tmp_path, form):
    archive = tar(tmp_path / "a.tar.gz", member("x" * 2 * 2**20, b"1"), form=form)
    refused(archive, tmp_path, "expected headers of at most 1048576 bytes")


def test_headers_upon_headers(tmp_path):
    info = tarfile.TarInfo("x")
    info.pax_headers = {"comment": "y"}
    pax = info.tobuf(tarfile.PAX_FORMAT)[: 2 * 512]
    (tmp_path / "a.tar").write_bytes(pax * 5000)
    refused(tmp_path / "a.tar", tmp_path, "damaged")


def test_a_negative_size(tmp_path):
    info, _ = member("x")
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = b"\xff" * 10 + b"\xf0\x00"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    (tmp_path / "a.tar").write_bytes(bytes(data) * 3 + bytes(1024))
    refused(tmp_path / "a.tar", tmp_path, "found -4096|damaged")


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    folders = (member(f"{number}/", kind=tarfile.DIRTYPE) for number in range(4))
    refused(tar(tmp_path / "a.tar.gz", *folders), tmp_path, "at most 3 members")
    unpack(tar(tmp_path / "b.tar.gz", *(member(str(n)) for n in range(3))), tmp_path / "target")


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_truncated_and_damaged(tmp_path, kind):
    whole = tmp_path / "whole"
    data = os.urandom(3000)
    if kind == "zip":
        zip_(whole, ("a", data), ("b", data))
    else:
        tar(whole, member("a", data), member("b", data), mode=kind)
    content = whole.read_bytes()
    whole.unlink()
    archive = tmp_path / "archive"
    # Of a plain tar, the last of the zeros after its end may be missing.
    ends = [600, 3584, 4000, 7168] if kind == "w" else [600, len(content) // 2, len(content) - 1]
    for end in ends:
        archive.write_bytes(content[:end])
        refused(archive, tmp_path, "damaged|neither")
    if kind != "w":  # which has no checksum of its data
        archive.write_bytes(content[:2000] + bytes([content[2000] ^ 0xFF]) + content[2001:])
        refused(archive, tmp_path, "damaged")
    header = content[:3590] + b"\xff" + content[3591:] if kind == "w" else b""
    archive.write_bytes(header or b"no archive at all" * 100)
    refused(archive, tmp_path, "damaged|neither")


def test_a_password(tmp_path):
    archive = zip_(tmp_path / "a.zip", ("a", b"x"))
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    refused(archive, tmp_path, "without a password")


def test_empty_and_missing(tmp_path):
    refused(tar(tmp_path / "a.tar", mode="w"), tmp_path, "neither|empty")
    refused(zip_(tmp_path / "a.zip", ("folder/", b"")), tmp_path, "empty archive")
    refused(tmp_path / "none.zip", tmp_path, "unreadable")


def test_a_full_disk_and_a_target_that_is_there(tmp_path):
    archive = tar(tmp_path / "a.tar.gz", member("a", os.urandom(10**5)))
    with largest_file(5 * 10**4), pytest.raises(UserError, match=r"could not be unpacked.*File too large") as error:
        unpack(archive, tmp_path / "target")
    assert not isinstance(error.value, RefusedError)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").touch()
    with pytest.raises(UserError, match="not empty"):
        unpack(archive, tmp_path / "target")
    assert names(tmp_path) == ["a.tar.gz", "target", "target/mine"]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / ".target.tmp").mkdir()
    (tmp_path / ".target.tmp" / "half").touch()
    unpack(tar(tmp_path / "a.tar", member("a", b"x"), mode="w"), tmp_path / "target")
    assert names(tmp_path) == ["a.tar", "target", "target/a"]


def test_a_member_without_a_name(tmp_path):
    archive = zip_(tmp_path / "a.zip", ("abc", b"x"))
    archive.write_bytes(archive.read_bytes().replace(b"abc", b"\0bc"))
    refused(archive, tmp_path, "in the place of another")
