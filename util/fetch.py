"""Fetch released weights and public data sets by name, check them, and keep them in one folder.

`downloads.json` is the list. The first fetch records the sha256, so that a later change is noticed.
"""

import contextlib
import difflib
import json
import os
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from urllib.parse import urlsplit

from util.errors import UserError, one_line, warn
from util.files import atomic_path, digest, read_json, write_json
from util.transfer import CONNECT_S, check_size, download, forget, record_of, unpack

REGISTRY = Path(__file__).with_name("downloads.json")
WEIGHTS, DATASET = "weights", "dataset"
HUB = "hf://"
FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository: the first of these
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
LARGEST = {WEIGHTS: 10 * 10**9, DATASET: 100 * 10**9}  # bytes, if the registry does not say

# size and largest_unpacked: bytes. checksum: "md5:" or "sha256:" and the digest or its beginning. preset: of
# `models_mae`. how: what a person must do if a program cannot fetch it. use: a command, with PATH for a data
# set's folder. norm_eps: epsilon of the norms inside a model's blocks. All but the first seven may be None.
COLUMNS = "name kind url licence holds citation use size checksum preset how largest_unpacked norm_eps"


class Entry(namedtuple("Entry", COLUMNS, defaults=[None] * 6)):
    """A row of the registry."""

    @property
    def place(self):
        """The path of its file or folder after fetching."""
        if "://" not in self.url:
            return Path(__file__).parents[1] / self.url  # this repository's own
        if self.kind == DATASET:
            return home() / "datasets" / self.name
        return home() / "weights" / f"{self.name}{Path(urlsplit(self.url).path).suffix}"

    @property
    def largest(self):
        """Most bytes of its file."""
        return self.size or self.largest_unpacked or LARGEST[self.kind]


def home():
    """The folder of downloads: RADIO_MAE_HOME, or radio-mae in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = os.environ.get("RADIO_MAE_HOME") or f"{cache}/radio-mae"
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no such user, or no current folder
        raise UserError(f"RADIO_MAE_HOME: expected a folder, {path}; found {one_line(error)}") from error


def entries():
    """{name: `Entry`} of the registry."""
    return {row["name"]: Entry(**row) for row in json.loads(REGISTRY.read_text())}


def resolve(name_or_path, offline=None):
    """The file of weights that a flag names, fetched if it is not there.

    A name is a file, a folder of transformers, an entry, or a hub address: `owner/name` or
    `hf://owner/name[@revision][/file]`. Without a file: the first of `FILES`, or the only weights.
    `offline` uses the cache alone; None: as HF_HUB_OFFLINE says.

    Raises:
        UserError: there is no such file or name, or it cannot be fetched.
    """
    text, path, known = str(name_or_path), Path(name_or_path), entries()
    if path.exists() and not path.is_dir():
        return path
    if address := hub_address(text):
        print(f"{text}: licence: see https://huggingface.co/{_parse(address)[0]}")
        return _from_hub(address, offline)
    if text in known and known[text].kind == WEIGHTS:
        return fetch(known[text], offline)
    if text in known:
        raise UserError(f"{text}: expected weights; found the name of a data set")
    if inside := [path / name for name in FILES if (path / name).is_file()]:
        return inside[0]
    if path.is_dir():
        raise UserError(f"{text}: expected a file of weights; found a folder without {' or '.join(FILES)}")
    if path.suffix or re.search(r"[/\\]", text):
        raise UserError(f"{text}: expected a file of weights; found no such file")
    raise unknown(text, [name for name, entry in known.items() if entry.kind == WEIGHTS])


def hub_address(text):
    """The `hf://` address of an address or of `owner/name`; None for other names."""
    is_file = text.endswith((*SUFFIXES, ".ckpt", ".onnx", ".npz", ".tar")) or Path(text).is_dir()
    if not is_file and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        return f"{HUB}{text}"
    return text if text.startswith(HUB) else None


def entry_of(name):
    """The `Entry` with this name, hub address or hub repository; or None."""
    names, known = {str(name), hub_address(str(name))}, entries().values()
    return next((one for one in known if names & {one.name, one.url, one.url.rpartition("/")[0]}), None)


def unknown(name, names):
    """The error for a name that is not in `names`; it offers the nearest."""
    near = difflib.get_close_matches(name.lower(), names, cutoff=0.5)
    offer = f"the nearest names: {', '.join(near)}" if near else f"names: {', '.join(names)}"
    return UserError(f"{name}: expected a file or a name of `main_download.py list`; found neither; {offer}")


def fetch(entry, offline=None, source=None):
    """Fetch an entry into the cache and check it: the path of a file of weights or of a data set's folder.

    Args:
        offline: see `resolve`.
        source: a file to use instead of a download (`--from`).

    Raises:
        UserError: the file cannot be fetched or written, or differs from the published one.
    """
    if "-NC" in entry.licence:
        warn(f"{entry.name}: licence {entry.licence}: NOT FOR COMMERCIAL USE")
    else:
        print(f"{entry.name}: licence {entry.licence}")
    there = cached(entry)
    if source is not None:
        if there or entry.url.startswith(HUB):
            raise UserError(f"--from {source}: expected a name that is not here yet; found {there or HUB}")
        if not Path(source).is_file():
            found = "a folder" if Path(source).is_dir() else "no such file"
            raise UserError(f"--from {source}: expected a file; found {found}")
    elif entry.url.startswith(HUB):
        path = _from_hub(entry.url, offline)
        _verify(path, entry, entry.url)
        return path
    elif there:
        return there
    elif _is_offline(offline):
        raise UserError(f"{entry.name}: expected it in the cache, being offline; found no {entry.place}")
    elif entry.how:
        then = f"python main_download.py {entry.name} --from FILE"
        raise UserError(f"{entry.name}: a person must fetch {entry.url}: {entry.how}; then: {then}")
    try:
        with _alone(entry.name):
            return cached(entry) or _keep(entry, source)
    except OSError as error:
        expected = f"expected a folder that can be written; {error.strerror or error}"
        raise UserError(f"{entry.name}: {home()} (RADIO_MAE_HOME): {expected}") from error


def cached(entry):
    """Path of an entry in the cache, or None. A file that changed since its check is an error."""
    if entry.url.startswith(HUB):
        return _in_hub_cache(entry.url)
    path, about = entry.place, read_json(record_of(entry.place))
    if not path.exists():
        return None
    if path.is_dir() or "://" not in entry.url or about == _about(path, about.get("sha256")):
        return path
    sha256 = _verify(path, entry, path)
    if about.get("sha256", sha256) != sha256:
        expected = f"expected sha256 {about['sha256']}, as when it was fetched"
        raise UserError(f"{path}: {expected}; found {sha256}; remove the file to fetch it again")
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        write_json(record_of(path), _about(path, sha256))
    return path


def _is_offline(offline):
    if offline is None:
        return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return offline


def _about(path, sha256):
    found = path.stat()
    return {"sha256": sha256, "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _alone(name):
    """Wait for the lock of a name. The system releases the lock of a process that dies."""
    from filelock import FileLock, Timeout  # most commands fetch nothing

    lock = FileLock(home() / "locks" / f"{name}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"{name}: another process is fetching it; waiting", file=sys.stderr)
        return lock.acquire()


def _keep(entry, source):
    """Fetch an entry or take it from a file, check it, and move it to its place."""
    path = entry.place
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if source is None:
        download(entry, part)
    file, origin = Path(source or part), source or entry.url
    try:
        sha256 = _verify(file, entry, origin)
        before = read_json(record_of(path)).get("sha256", sha256)
        if before != sha256:
            warn(f"{entry.name}: {origin} has changed: sha256 {before} at the first fetch, now {sha256}")
        if entry.kind == DATASET:
            print(f"{entry.name}: unpacking {file}")
            unpack(file, path, entry.largest_unpacked or LARGEST[DATASET])
        else:
            with atomic_path(path) as temporary:
                (os.replace if source is None else shutil.copyfile)(file, temporary)
    except UserError:
        forget(part)
        raise
    write_json(record_of(path), _about(path, sha256))
    forget(part)
    print(f"{entry.name}: checksum {entry.checksum or 'not published'}: sha256 {sha256} recorded")
    return path


def _verify(path, entry, origin):
    """The sha256 of a file. Raises a UserError if it is not the published file."""
    algorithm, _, published = (entry.checksum or "sha256:").lower().partition(":")
    with open(path, "rb") as file:
        beginning = file.read(512).lstrip().lower()
    if beginning.startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{origin}: expected {entry.holds}; found a web page")
    check_size(entry, path.stat().st_size, origin)
    found = digest(path, algorithm)
    if not found.startswith(published):
        raise UserError(f"{origin}: expected {algorithm} {published}; found {found}")
    return found if algorithm == "sha256" else digest(path, "sha256")


def _from_hub(url, offline):
    """The file of a hub address, from the cache if the hub does not answer."""
    import requests
    from huggingface_hub import HfApi, constants, errors, hf_hub_download

    repository, revision, file = _parse(url)
    there = _in_hub_cache(url)
    if there and (file or _is_offline(offline) or there.name == FILES[0]):
        return there
    if _is_offline(offline):
        raise UserError(f"{url}: expected it in the cache, being offline; found none")
    try:
        # The hub's client would try for half a minute.
        requests.head(constants.ENDPOINT, timeout=CONNECT_S, allow_redirects=False)
        names = [file] if file else _weights_of(HfApi().list_repo_files(repository, revision=revision))
        if len(names) == 1:
            cache = {"cache_dir": home() / "hub", "etag_timeout": CONNECT_S}
            return Path(hf_hub_download(repository, names[0], revision=revision, **cache))
        expected = f"one file of weights, or hf://{repository}/FILE; found {', '.join(names) or 'none'}"
    except (requests.RequestException, errors.LocalEntryNotFoundError):
        if there:
            return there
        elsewhere = "without a network, fetch the file elsewhere and give its path"
        expected = f"an answer of {constants.ENDPOINT}; found none ({elsewhere})"
    except errors.RepositoryNotFoundError:  # or a gated one
        expected = "a repository that you may read; found none (`hf auth login`?)"
    except errors.EntryNotFoundError:
        expected = f"a file of {repository}; found none of this name"
    except errors.RevisionNotFoundError:
        expected = f"a revision of {repository}; found no {revision}"
    except Exception as error:  # the client uses several libraries, each with errors of its own
        expected = f"a file of the hub; found {one_line(error) or type(error).__name__}"
    raise UserError(f"{url}: expected {expected}")


def _in_hub_cache(url):
    """The file of a hub address in the cache, or None."""
    from huggingface_hub import errors, snapshot_download

    repository, revision, file = _parse(url)
    cache = {"cache_dir": home() / "hub", "local_files_only": True}
    try:
        folder = snapshot_download(repository, revision=revision, **cache)
    except errors.LocalEntryNotFoundError:
        return None
    names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    names = [name for name in names if name == file] if file else _weights_of(names)
    return Path(folder, names[0]) if len(names) == 1 else None


def _weights_of(names):
    """Possible weights of a repository: the first of `FILES`, or else all files of weights."""
    first = [name for name in FILES if name in names][:1]
    return first or sorted(name for name in names if name.endswith(SUFFIXES))


def _parse(url):
    """(owner/name, revision or None, file or None) of a hub address."""
    match = re.fullmatch(r"hf://([\w-][\w.-]*/[\w-][\w.-]*)(?:@([^/]+))?(?:/(.+))?", url)
    if not match or ".." in (match[3] or "").split("/"):
        raise UserError(f"{url}: expected hf://owner/name[@revision][/file]; found another form")
    return match.groups()
