"""Files of the Hugging Face hub, `hf://owner/name[@revision]/file`, fetched by its own client into the cache folder."""

import hashlib
import re
from pathlib import Path

from util.cache import digests, home
from util.errors import UserError

HUB = "hf://"


def from_hub(url, offline=False):
    """The file of an address, fetched and checked if it is not in the cache; what is there is not looked up again.

    Raises:
        UserError: there is no such file, it may not be read, the hub cannot be reached, or what came is damaged.
    """
    if path := in_cache(url):
        return path
    if offline:
        raise UserError(f"{url}: expected it in the cache, being offline; found none")
    path = _download(url)
    _verify_blob(path, url)
    return path


def in_cache(url):
    """The file of an address if it was fetched before, or None; without the network."""
    repository, revision, file = _parse(url)
    from huggingface_hub import try_to_load_from_cache  # here, since most commands fetch nothing

    found = try_to_load_from_cache(repository, file, cache_dir=home() / "hub", revision=revision)
    return Path(found) if isinstance(found, str) else None  # or a mark that there is no such file


def page(url):
    """Where a repository says what its files are, and under which licence."""
    return f"https://huggingface.co/{_parse(url)[0]}"


def _parse(url):
    """(owner/name, revision or None, file)."""
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", url)
    if not match or ".." in match[3].split("/"):
        raise UserError(f"{url}: expected hf://owner/name/file or hf://owner/name@revision/file; found another form")
    return match.groups()


def _download(url):
    repository, revision, file = _parse(url)
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision, cache_dir=home() / "hub"))
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
