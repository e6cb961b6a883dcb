"""Shard directories that are elsewhere, copied to this machine once and verified.

The manifest is read first and moved into its place last, when every file that it lists is there with its checksum.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from mlpdata.errors import Error
from mlpdata.fetch import hub
from mlpdata.fetch.download import exclusive
from mlpdata.fetch.official import download_folder
from mlpdata.shards.files import local_sizes
from mlpdata.shards.manifest import Manifest, manifest_path
from mlpdata.shards.stores import SCHEME, Say, Store, open_store
from mlpdata.system.files import sync_dir
from mlpdata.system.format import format_bytes


def is_remote(root: str | Path | None) -> bool:
    """Whether a directory is named by a URL or as a repository.

    >>> is_remote("hf:me/shapes-32"), is_remote("s3://bucket/shapes-32"), is_remote("shards/shapes-32")
    (True, True, False)
    """
    return root is not None and (hub.is_repository(str(root)) or SCHEME.fullmatch(str(root)) is not None)


def local_copy(root: str | Path, say: Say = lambda line: None) -> Path:
    """The directory itself, or a verified copy of one that is elsewhere, made in the download folder on first use.

    Raises Error where it is not there, is unfinished, or is not what its manifest says.
    """
    if not is_remote(root):
        return Path(root)
    store = open_store(str(root))
    manifest = store.read(manifest_path(Path()).name)
    folder = download_folder() / "shards" / f"{store.name}-{hashlib.sha256(manifest).hexdigest()[:16]}"
    try:
        if not manifest_path(folder).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive(folder.with_name(f".{folder.name}.lock"), say):
                if not manifest_path(folder).exists():
                    _copy(store, manifest, folder, say)
    except OSError as e:
        raise Error(f"cannot copy {root} to {folder}: {e.strerror or e}") from None
    return folder


def _copy(store: Store, manifest: bytes, folder: Path, say: Say) -> None:
    files = Manifest.parse(manifest, f"{store.where}/{manifest_path(Path()).name}").files
    aside = folder / ".remote"  # a manifest is only in its place when everything that it lists is
    aside.mkdir(exist_ok=True)
    manifest_path(aside).write_bytes(manifest)
    sizes = local_sizes(folder)
    missing = {name: entry for name, entry in files.items() if sizes.get(name) != entry["bytes"]}
    need, free = sum(entry["bytes"] for entry in missing.values()), shutil.disk_usage(folder).free
    if need > free:
        raise Error(f"no space for {folder}: {format_bytes(need)} are missing, {format_bytes(free)} free")
    say(f"copying {store.where} to {folder}: {format_bytes(need)} in {len(missing)} files")
    for name, entry in missing.items():
        store.fetch(name, entry, folder, say)
    os.replace(manifest_path(aside), manifest_path(folder))
    aside.rmdir()
    sync_dir(folder)
