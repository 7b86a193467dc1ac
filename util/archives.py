"""Unpack archives of strangers: nothing outside the folder, no links, no bombs, and nothing at all if a member is amiss."""

import bz2
import contextlib
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from util.errors import UserError

LARGEST_UNPACKED = 100 * 10**9  # bytes
MOST_MEMBERS = 500_000
# Unpacked bytes for each packed one, beyond the first 64 MiB. Spectrograms and CSI come to 2 to 20, deflate ends at 1032.
LARGEST_RATIO = 200
RATIO_FREE = 64 * 2**20

CHUNK = 2**18
# tarfile reads a member's long name and attributes in one piece, of whatever size the archive claims.
LARGEST_HEADER = 2**20
TAR_BLOCK = 512

_COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
# What the readers raise on damaged files; RuntimeError is for headers that follow upon each other without end.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
           RuntimeError, OverflowError)  # fmt: skip


class RefusedError(UserError):
    """An archive that is at fault itself, not the disk that it is unpacked to: trying again would not help."""


def unpack(archive, folder, largest=LARGEST_UNPACKED):
    """Unpack a tar (plain, .gz, .bz2, .xz) or zip archive, told apart by their content, into a new folder.

    Files and folders only, with the modes that new ones have. What is unpacked is counted as it is written, whatever the
    archive says of itself. The caller sees to it that one process at a time unpacks to `folder`.

    Args:
        folder: made by renaming, when it is complete.
        largest: bytes that may be unpacked.

    Raises:
        RefusedError: the archive is damaged, too large, or has a member that would not stay in the folder, is no plain file
            or folder, or takes the place of another.
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)  # of a process that was killed
        temporary.mkdir(parents=True)
        try:
            _write(archive, _members(archive, _Budget(archive, largest)), temporary)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{archive}: could not be unpacked to {folder}: {error.strerror or error}") from error


def _write(archive, members, folder):
    files = 0
    for number, (name, chunks) in enumerate(members, 1):
        if number > MOST_MEMBERS:
            raise RefusedError(f"{archive}: expected at most {MOST_MEMBERS} members; found more")
        path = folder.joinpath(*_parts(archive, name))
        try:
            if chunks is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            # Exclusive, so that no member writes over, or through, what is there.
            with open(path, "xb") as file:
                for chunk in chunks:
                    file.write(chunk)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise RefusedError(f"{archive}: expected each member once; found {name!r} in the place of another") from error
        files += 1
    if not files:
        raise RefusedError(f"{archive}: expected files; found an empty archive")


def _parts(archive, name):
    """The parts of a member's path, below the folder."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    if ".." in parts or "\0" in name or re.match(r"[/\\]|[A-Za-z]:", name):
        raise RefusedError(f"{archive}: expected members that stay in their folder; found {name!r}")
    return parts


class _Budget:
    """Bytes that an archive may still unpack to."""

    def __init__(self, archive, largest):
        self.archive = archive
        self.largest = largest
        self.spent = 0
        with _damage_reported(archive):
            self.densest = RATIO_FREE + LARGEST_RATIO * os.path.getsize(archive)

    def spend(self, count):
        self.spent += count
        if self.spent > self.largest:
            raise RefusedError(f"{self.archive}: expected at most {self.largest} bytes when unpacked; found more")
        if self.spent > self.densest:
            raise RefusedError(f"{self.archive}: expected at most {LARGEST_RATIO} times its size when unpacked; found more")


def _members(archive, budget):
    """(name, chunks of bytes) of each member in turn, chunks None for a folder.

    What goes wrong in here is the archive's fault: the errors of whoever writes the chunks do not pass through.
    """
    with _damage_reported(archive), open(archive, "rb") as file:
        head = file.read(TAR_BLOCK)
        file.seek(0)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _zip_members(archive, file, budget)
            return
        openers = [opener for magic, opener in _COMPRESSIONS.items() if head.startswith(magic)]
        if not openers and head[257:262] != b"ustar":
            raise RefusedError(f"{archive}: expected a tar (.gz, .bz2, .xz) or zip archive; found neither")
        with openers[0](file) if openers else file as stream:
            yield from _tar_members(archive, stream, budget)


def _tar_members(archive, stream, budget):
    counted = _Counted(archive, stream, budget)
    with tarfile.open(fileobj=counted, mode="r:") as tar:
        for member in tar:
            if member.size < 0:
                raise RefusedError(f"{archive}: expected a size of {member.name!r}; found {member.size}")
            if member.isdir():
                yield member.name, None
            elif member.isreg() and not member.issparse():
                yield member.name, _chunks(archive, tar.extractfile(member))
            else:
                raise _odd(archive, member.name)
        # tarfile takes a broken header for the end, but the end of an archive is a block of zeros.
        if counted.last != bytes(TAR_BLOCK):
            raise RefusedError(f"{archive}: expected a whole archive; found a damaged or truncated one")
        while counted.read(CHUNK):
            pass  # to the checksum of the compressed stream


def _zip_members(archive, file, budget):
    with zipfile.ZipFile(file) as zipped:
        for info in zipped.infolist():
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _odd(archive, info.filename)
            if info.filename.endswith(("/", "\\")):
                yield info.filename, None
                continue
            if info.flag_bits & 1:
                raise RefusedError(f"{archive}: expected members without a password; found {info.filename!r}")
            # zipfile bounds what it inflates at a time for these two alone.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RefusedError(f"{archive}: expected deflated members; found {info.filename!r}, compressed otherwise")
            yield info.filename, _chunks(archive, zipped.open(info), budget)


def _odd(archive, name):
    return RefusedError(f"{archive}: expected files and folders only; found a link, device or the like: {name!r}")


def _chunks(archive, stream, budget=None):
    with _damage_reported(archive), stream:
        while chunk := stream.read(CHUNK):
            if budget:
                budget.spend(len(chunk))
            yield chunk


class _Counted:
    """A decompressed tar, as tarfile reads it: each byte is counted, and no header is larger than it may be."""

    def __init__(self, archive, stream, budget):
        self.archive = archive
        self.stream = stream
        self.budget = budget
        self.last = b""

    def read(self, size):
        if not 0 <= size <= LARGEST_HEADER:
            raise RefusedError(f"{self.archive}: expected headers of at most {LARGEST_HEADER} bytes; found {size}")
        self.last = self.stream.read(size)
        self.budget.spend(len(self.last))
        return self.last

    def seek(self, position):
        if position < self.tell():
            raise RefusedError(f"{self.archive}: expected a whole archive; found a damaged one")
        while self.tell() < position and self.read(min(CHUNK, position - self.tell())):
            pass

    def tell(self):
        return self.stream.tell()


@contextlib.contextmanager
def _damage_reported(archive):
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        raise RefusedError(f"{archive}: expected a whole archive; found a damaged or unreadable one: {error}") from error
