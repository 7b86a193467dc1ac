"""Released weights and public data sets by name: fetched once, checked, and kept in a cache folder.

`downloads.json` lists them; the files in this repository's `weights/` have names too. What is not known of an entry is null
there. A checksum that nobody published is recorded when a file is first fetched, so that a change is noticed.
"""

import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from util import archives
from util.cache import alone, digests, home, read_json, write_json
from util.errors import UserError, warn
from util.hub import FILES, HUB, from_hub, in_cache, page
from util.transfer import forget, transfer

REGISTRY = Path(__file__).with_name("downloads.json")
RELEASED = Path(__file__).parents[1] / "weights"
FILE_SUFFIXES = {".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".onnx", ".npz", ".tar"}
KINDS = WEIGHTS, DATASET = "weights", "dataset"


@dataclass(frozen=True)
class Entry:
    """A row of the registry.

    size: bytes; checksum: "md5:" or "sha256:" and the digest or its beginning; preset: of `models_mae`; how: what a person
    has to do where a program cannot fetch it; use: a command, with PATH for where a data set lies; largest_unpacked: bytes;
    norm_eps: epsilon of the norms inside a model's blocks.
    """

    name: str
    kind: str
    url: str
    size: int | None
    checksum: str | None
    licence: str
    preset: str | None
    holds: str
    citation: str
    how: str | None
    use: str
    largest_unpacked: int | None
    norm_eps: float | None = None

    @property
    def non_commercial(self):
        return "-NC" in self.licence

    @property
    def check(self):
        """What is published to check a file by, in a few words."""
        algorithm, _, digest = (self.checksum or "").partition(":")
        if not digest:
            return "not published"
        return algorithm if len(digest) == 2 * hashlib.new(algorithm).digest_size else f"{algorithm} begins {digest}"


def entries():
    """{name: `Entry`} of the registry and of this repository's own weights."""
    listed = [Entry(**row) for row in json.loads(REGISTRY.read_text())]
    return {entry.name: entry for entry in [*listed, *map(_released, sorted(RELEASED.glob("*.safetensors")))]}


def resolve(name_or_path, offline=None):
    """The file of weights that a flag means: a file, a name of `entries()`, or an address of the Hugging Face hub.

    Addresses are `owner/name`, `hf://owner/name[@revision]` and `hf://owner/name[@revision]/file`; see `util.hub`. What is
    not in the cache yet is fetched and checked; its licence is printed.

    Args:
        offline: use the cache alone; None: as HF_HUB_OFFLINE says.

    Returns:
        Path.

    Raises:
        UserError: there is no such file or name, or it cannot be fetched.
    """
    text = str(name_or_path)
    path = Path(text)
    if path.exists() and not path.is_dir():
        return path
    if address := hub_address(text):
        print(f"{text}: licence: see {page(address)}")
        return from_hub(address, _is_offline(offline))
    known = entries()
    if text in known:
        if known[text].kind != WEIGHTS:
            raise UserError(f"{text}: expected weights; found the name of a data set")
        return fetch(known[text], offline)
    if path.is_dir():
        inside = next((path / name for name in FILES if (path / name).is_file()), None)
        if inside:  # as transformers' save_pretrained leaves it
            return inside
        raise UserError(f"{text}: expected a file of weights; found a folder without {' or '.join(FILES)}")
    if path.suffix or re.search(r"[/\\]", text):
        raise UserError(f"{text}: expected a file of weights; found no such file")
    raise unknown(text, [name for name, entry in known.items() if entry.kind == WEIGHTS])


def hub_address(text):
    """The `hf://` address that a name means, or None: itself, or that of `owner/name`, which is no file's name."""
    if text.startswith(HUB):
        return text
    is_file = Path(text).suffix in FILE_SUFFIXES or Path(text).is_dir()
    return None if is_file or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) else f"{HUB}{text}"


def entry_of(name):
    """The `Entry` of weights that a flag means by their name, or by their address or its repository on the hub; or None."""
    address = hub_address(str(name))
    for entry in entries().values():
        if entry.name == str(name) or (address and f"{entry.url}/".startswith(f"{address}/")):
            return entry
    return None


def unknown(name, names):
    """The error for a name that is none of `names`; the nearest are offered."""
    near = difflib.get_close_matches(name.lower(), names, cutoff=0.5)
    return UserError(f"{name}: expected a file or a name of `main_download.py list`; found neither; "
                     f"{'the nearest names' if near else 'names'}: {', '.join(near or names)}")  # fmt: skip


def fetch(entry, offline=None, source=None):
    """Have an entry in the cache, checked; only one process at a time fetches it.

    Args:
        source: a file to take instead of fetching one: `--from`.

    Returns:
        Path: a file of weights, or the folder of a data set.

    Raises:
        UserError: it cannot be fetched or kept, or is not what was published.
    """
    _print_licence(entry.name, entry.licence, entry.non_commercial)
    if entry.url.startswith(HUB) and source is None:
        path = from_hub(entry.url, _is_offline(offline))
        _verify(path, entry, entry.url)
        return path
    path = cached(entry)
    if source is not None:
        return _take(entry, Path(source), path)
    if path:
        return path
    if _is_offline(offline):
        raise UserError(f"{entry.name}: expected it in the cache, being offline; found no {_place(entry)}")
    if entry.how:
        raise UserError(f"{entry.name}: it takes a person to fetch {entry.url}: {entry.how}; "
                        f"then: python main_download.py {entry.name} --from FILE")  # fmt: skip
    with alone(entry.name):
        return cached(entry) or _fetch(entry)


def cached(entry):
    """Where an entry lies in the cache, or None. A file that has changed since it was checked is an error."""
    if entry.url.startswith(HUB):
        return in_cache(entry.url)
    path = _place(entry)
    if not path.exists():
        return None
    if entry.kind == DATASET or path.parent == RELEASED:
        return path
    about, stat = read_json(_record(path)), path.stat()
    if about.get("size") == stat.st_size and about.get("mtime_ns") == stat.st_mtime_ns:
        return path
    sha256, _ = _verify(path, entry, path)
    if about.get("sha256", sha256) != sha256:
        raise UserError(f"{path}: expected sha256 {about['sha256']}, as when it was fetched; found {sha256}; "
                        "remove the file to fetch it again")  # fmt: skip
    with contextlib.suppress(OSError):  # a cache that others keep may be read-only
        write_json(_record(path), _about(entry, path, sha256))
    return path


def data_path(folder):
    """Where the data lies in an unpacked data set: below folders that hold one folder and nothing else."""
    while True:
        inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        [folder] = inside


def _place(entry):
    """Where an entry lies, or will."""
    if entry.kind == DATASET:
        return home() / "datasets" / entry.name
    if Path(entry.url).parent == RELEASED:
        return Path(entry.url)
    return home() / "weights" / f"{entry.name}{Path(urlsplit(entry.url).path).suffix}"


def _record(path):
    """What was known of a file when it was checked."""
    return path.with_name(f"{path.name}.json")


def _about(entry, path, sha256):
    stat = path.stat()
    return {"url": entry.url, "size": stat.st_size, "sha256": sha256, "mtime_ns": stat.st_mtime_ns,
            "fetched": time.strftime("%Y-%m-%d")}  # fmt: skip


def _fetch(entry):
    path = _place(entry)
    if entry.kind == WEIGHTS:
        _fetch_file(entry, path, path)
        return path
    archive = path.with_name(f"{path.name}.archive")
    if not archive.exists():  # of a process whose disk was full when it unpacked
        _fetch_file(entry, archive, path)
    try:
        _unpack(entry, archive, path)
    except archives.RefusedError:
        archive.unlink()
        raise
    archive.unlink()
    return path


def _fetch_file(entry, path, recorded):
    """Fetch to `path`, which appears when it is complete and checked; the record is that of `recorded`."""
    part = path.with_name(f"{path.name}.part")
    transfer(entry.url, part, entry.name, entry.size, checked=entry.checksum is not None)
    _keep(entry, part, path, recorded, entry.url)


def _keep(entry, part, path, recorded, origin):
    """Give a complete part its name, if it is what was published, and remove it if not."""
    try:
        sha256, checked = _verify(part, entry, origin)
    except UserError:
        forget(part)
        raise
    before = read_json(_record(recorded)).get("sha256", sha256)
    if before != sha256:
        warn(f"{entry.name}: {origin} has changed: sha256 {before} when it was first fetched, now {sha256}")
    try:
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        write_json(_record(recorded), _about(entry, part, sha256))
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: could not be written: {error.strerror}") from error
    forget(part)
    print(f"{entry.name}: {checked}")


def _unpack(entry, archive, folder):
    print(f"{entry.name}: unpacking {archive}")
    archives.unpack(archive, folder, entry.largest_unpacked or archives.LARGEST_UNPACKED)


def _take(entry, source, there):
    """Check a file that a person fetched, and have it in the cache."""
    if entry.url.startswith(HUB):
        raise UserError(f"--from {source}: expected a name that is not of the hub; found {entry.name}, {entry.url}")
    if there:
        raise UserError(f"--from {source}: expected a name that is not in the cache; found {there}: remove that first")
    if not source.is_file():
        raise UserError(f"--from {source}: expected a file; found {'a folder' if source.is_dir() else 'no such file'}")
    path = _place(entry)
    with alone(entry.name):
        if entry.kind == DATASET:
            sha256, checked = _verify(source, entry, source)
            _unpack(entry, source, path)
            write_json(_record(path), _about(entry, source, sha256))
            print(f"{entry.name}: {checked}")
            return path
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            forget(part)
            shutil.copyfile(source, part)
        except OSError as error:
            forget(part)
            raise UserError(f"{part}: could not be written: {error.strerror}") from error
        _keep(entry, part, path, path, source)
    return path


def _verify(path, entry, origin):
    """Hold a file against what was published.

    Returns:
        (sha256, what it was checked by).
    """
    algorithm, _, published = (entry.checksum or "sha256:").lower().partition(":")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            beginning = file.read(512).lstrip().lower()
        found = digests(path, {"sha256", algorithm})
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read; {error.strerror}") from error
    if beginning.startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{origin}: expected {entry.holds}; found a web page")
    if entry.size not in (None, size):
        raise UserError(f"{origin}: expected {entry.size} bytes; found {size}")
    whole = len(published) == len(found[algorithm])
    if not found[algorithm].startswith(published):
        raise UserError(f"{origin}: expected {algorithm} {published}{'' if whole else '...'}; found {found[algorithm]}")
    recorded = f"size {size} and sha256 {found['sha256']} recorded"
    if not published:
        return found["sha256"], f"checksum not published: {recorded}"
    return found["sha256"], f"{algorithm} checked" if whole else f"{algorithm} checked as far as it is published: {recorded}"


def _print_licence(name, licence, non_commercial):
    if non_commercial:
        warn(f"{name}: licence {licence}: NOT FOR COMMERCIAL USE")
    else:
        print(f"{name}: licence {licence}")


def _is_offline(offline):
    """Whether the network is not to be used; the values are those that huggingface_hub takes for true."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"} if offline is None else offline


# This repository's own weights


def _released(path):
    """The entry of a file in `weights/`; what the header does not say is left open."""
    header = _header(path)
    return Entry(
        name=path.stem, kind=WEIGHTS, url=str(path), size=path.stat().st_size, checksum=None,
        licence=header.get("licence", "not stated"), preset=header.get("preset"),
        holds=f"this project's own: {header.get('holds', 'weights')}, trained on {header.get('data') or 'data not stated'}",
        citation="this repository", how=None, use=f"python main_finetune.py --finetune {path.stem} ...",
        largest_unpacked=None,
    )  # fmt: skip


def _header(path):
    """The text values in the header of a .safetensors file; empty if it is damaged, which its reader will say."""
    try:
        with open(path, "rb") as file:
            [length] = struct.unpack("<Q", file.read(8))
            return json.loads(file.read(min(length, 10**8))).get("__metadata__", {})
    except (OSError, ValueError, struct.error, AttributeError):
        return {}

