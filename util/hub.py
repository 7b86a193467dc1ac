"""Files of the Hugging Face hub, `hf://owner/name[@revision][/file]`, fetched by its own client into the cache folder.

Without a file it is the repository's weights: the first of `FILES` that it has, else its only file of weights.
"""

import contextlib
import hashlib
import re
from pathlib import Path

from util.cache import digests, home
from util.errors import UserError

HUB = "hf://"
FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
ANSWER_S = 5  # the hub has so long to answer at all


def from_hub(url, offline=False):
    """The file of an address, fetched and checked if it is not in the cache; what is there is not looked up again.

    An address without a file is looked up unless the cache has the first of `FILES`: the only file there may be one of many.
    Where the hub does not answer, the cache decides.

    Raises:
        UserError: there is no such file, it may not be read, the hub cannot be reached, or what came is damaged.
    """
    repository, revision, file = _parse(url)
    there = in_cache(url)
    if there and (file or offline or there.name == FILES[0]):
        return there
    if offline:
        raise UserError(f"{url}: expected it in the cache, being offline; found none")
    try:
        _see_that_it_answers(url)
    except UserError:
        if there:
            return there
        raise
    path = _download(url, repository, revision, file or _only_weights(url, repository, revision))
    _verify_blob(path, url)
    return path


def in_cache(url):
    """The file of an address if it was fetched before, or None; without the network."""
    repository, revision, file = _parse(url)
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache  # here, since most commands fetch nothing

    folder = home() / "hub"
    files = [file] if file else FILES
    if not file and folder.is_dir():
        there = [str(one.file_path.relative_to(at.snapshot_path)) for repo in scan_cache_dir(folder).repos
                 if (repo.repo_type, repo.repo_id) == ("model", repository) for at in repo.revisions
                 if (revision or "main") in {*at.refs, at.commit_hash} for one in at.files]  # fmt: skip
        there = [name for name in there if name.endswith(SUFFIXES)]
        files = [*FILES, *there] if len(there) == 1 else FILES
    for one in files:
        found = try_to_load_from_cache(repository, one, cache_dir=folder, revision=revision)
        if isinstance(found, str):  # else a mark that there is no such file
            return Path(found)
    return None


def page(url):
    """Where a repository says what its files are, and under which licence."""
    return f"https://huggingface.co/{_parse(url)[0]}"


def _parse(url):
    """(owner/name, revision or None, file or None)."""
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?", url)
    if not match or ".." in (match[3] or "").split("/"):
        raise UserError(f"{url}: expected hf://owner/name, with @revision or /file behind it or both; found another form")
    return match.groups()


def _see_that_it_answers(url):
    """Raise within seconds where there is no network: the client itself tries for half a minute, and prints each try."""
    import requests
    from huggingface_hub import constants

    try:
        requests.head(constants.ENDPOINT, timeout=ANSWER_S, allow_redirects=False)
    except requests.RequestException as error:
        raise UserError(f"{url}: expected an answer of {constants.ENDPOINT}; found none (without a network, fetch the file "
                        "elsewhere and give its path)") from error  # fmt: skip


def _only_weights(url, repository, revision):
    """The name of a repository's file of weights."""
    from huggingface_hub import HfApi

    with _said(url, repository, revision):
        files = HfApi().list_repo_files(repository, revision=revision)
    there = [name for name in FILES if name in files] or [name for name in sorted(files) if name.endswith(SUFFIXES)]
    if len(there) != 1 and there[:1] != [FILES[0]]:
        raise UserError(f"{url}: expected one file of weights, or hf://{repository}/FILE; found "
                        f"{', '.join(there) or 'none'}")
    return there[0]


def _download(url, repository, revision, file):
    from huggingface_hub import hf_hub_download

    with _said(url, repository, revision):
        folder = home() / "hub"
        return Path(hf_hub_download(repository, file, revision=revision, cache_dir=folder, etag_timeout=ANSWER_S))


@contextlib.contextmanager
def _said(url, repository, revision):
    """What the hub's client raises, as a user's mistake in one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"{url}: expected an answer of the hub; found none") from error
    except errors.RepositoryNotFoundError as error:  # or a gated one
        raise UserError(f"{url}: expected a repository that you may read; found none (`hf auth login`?)") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{url}: expected a file of {repository}; found none of this name") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{url}: expected a revision of {repository}; found no {revision}") from error
    except Exception as error:  # the client is made of several libraries, each with errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{url}: could not be fetched from the hub: {reason}") from error


def _verify_blob(path, url):
    """Its cache names a large file by its sha256, and a small one as git does; the client itself compares sizes only."""
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        found = digests(blob, ["sha256"])["sha256"]
    elif re.fullmatch("[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:  # a file system without symbolic links
        return
    if found != blob.name:
        path.unlink()
        blob.unlink()
        raise UserError(f"{url}: expected the checksum {blob.name}; found {found}")
