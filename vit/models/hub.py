"""Files of the Hugging Face hub: from its cache, or downloaded."""

import hashlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from vit.errors import ModelFileError, display_path
from vit.models.file import first_line


def download(repository: str, names: Sequence[str]) -> Path:
    """The first of the files that the hub has, in its cache; downloaded if it is not there yet.

    The hub's client writes to a temporary file and renames. It names large files by their SHA-256, so a damaged one is
    noticed here. Raises ModelFileError in one line without a network, or where there is no such file.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    cached = (try_to_load_from_cache(repository, name) for name in names)
    if (there := next((path for path in cached if isinstance(path, str)), None)) is not None:
        _check_hash(Path(there))
        return Path(there)
    _require_network(repository)
    for name in names:
        try:
            path = Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:
            raise ModelFileError(f"{repository}: not in the cache, and it cannot be downloaded: no network") from error
        except RepositoryNotFoundError as error:
            raise ModelFileError(f"{repository}: the hub has no such model, or not for everyone") from error
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{repository}: cannot be downloaded: {first_line(error)}") from error
        _check_hash(path)
        return path
    raise ModelFileError(f"{repository}: none of {', '.join(names)} in it; no other weights are read")


def _require_network(repository: str) -> None:
    """Raise ModelFileError at once where the hub has no address here; its client would try for half a minute."""
    from huggingface_hub import constants

    if urllib.request.getproxies() or constants.HF_HUB_OFFLINE:
        return
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError as error:
        raise ModelFileError(f"{repository}: not in the cache, and it cannot be downloaded: no network") from error


def _check_hash(path: Path) -> None:
    """Compare a file of the hub's cache with the SHA-256 that is its name. Raises ModelFileError."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) is None:
        return
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
        raise ModelFileError(f"{display_path(blob)}: damaged in the cache; delete it, and it is downloaded again")
