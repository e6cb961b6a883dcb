"""Directories elsewhere that are read without a copy: all but their shards is here, and tars come as they are wanted.

Such a folder has the manifest, the indices and the lists of a shard directory, and a file that says where it comes
from. What needs no pixels reads it like any other; `open_split` gives it a TarCache. Betons are not streamed: a
manifest has one checksum for a whole beton, and what cannot be verified is not trained on.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from mlpdata.errors import Error
from mlpdata.fetch.download import exclusive
from mlpdata.shards import remote
from mlpdata.shards.files import FileEntry, local_sizes
from mlpdata.shards.manifest import Manifest, manifest_path
from mlpdata.shards.tar_cache import TarCache
from mlpdata.shards.tar_room import opened, stamp_of
from mlpdata.shards.text import read_text
from mlpdata.system.files import make_folder, write_atomic
from mlpdata.system.format import format_bytes, plural

ORIGIN = ".origin"  # the file that holds the address


def local_directory(
    root: str | Path, tier: str | None = None, cache_bytes: int | None = None, say: remote.Say = lambda line: None
) -> Path:
    """The directory itself, or what is opened in the place of one elsewhere: a verified copy, or a folder to stream it.

    It is the latter for the tier "stream", and for the tier "auto" where a copy is not here already and is larger than
    cache_bytes or the free disk. say: is told which and why. Raises Error as `remote.local_copy` does.
    """
    if not remote.is_remote(root):
        return Path(root)
    store = remote.open_store(str(root))
    text, manifest = remote.read_manifest(store)
    why = "as asked"
    if tier != "stream":
        why = _why_no_copy(store, text, manifest, cache_bytes) if tier in (None, "auto") else ""
        if not why:
            return remote.local_copy(root, say)
    say(f"streaming {store.where}, {why}")
    return _folder_of(store, text, manifest, say)


def without_shards(root: str | Path, say: remote.Say = lambda line: None) -> Path:
    """The directory itself, a copy of one elsewhere if it is here, or else all of that but its shards.

    say: is told how much is fetched. Raises Error as `remote.local_copy` does.
    """
    if not remote.is_remote(root):
        return Path(root)
    store = remote.open_store(str(root))
    text, manifest = remote.read_manifest(store)
    copy = remote.folder_of(store, text, "shards")
    return copy if manifest_path(copy).exists() else _folder_of(store, text, manifest, say, tells=True)


def is_without_shards(root: Path) -> bool:
    """Whether a directory has its shards elsewhere."""
    return (root / ORIGIN).is_file()


def open_tars(
    root: Path, manifest: Manifest, split: str, format: str | None, cache_bytes: int | None
) -> TarCache | None:
    """Where the tars of a split come from, in a folder of this module; None for any other directory. Raises Error."""
    if not is_without_shards(root):
        return None
    address = read_text(root / ORIGIN).decode(errors="replace").strip()
    if format == "beton" or not manifest.splits[split].tars:
        has = "its tars are streamed" if manifest.splits[split].tars else "it has no tars: `mlpdata export --to tar`"
        raise Error(f"{address} cannot be streamed as a beton, which can only be verified as a whole; {has}")
    entries = {name: manifest.files[name] for name in manifest.splits[split].tars}
    return TarCache(root, address, entries, cache_bytes)


def _why_no_copy(store: remote.Store, text: bytes, manifest: Manifest, cache_bytes: int | None) -> str:
    """Why there can be no copy; empty where there can."""
    copy = remote.folder_of(store, text, "shards")
    if manifest_path(copy).exists():
        return ""
    try:
        make_folder(copy.parent)
        free = shutil.disk_usage(copy.parent).free
    except OSError as e:
        raise Error(f"cannot keep {store.where} in {copy.parent}: {e.strerror or e}") from None
    sizes = local_sizes(copy) if copy.is_dir() else {}
    missing = sum(entry["bytes"] for name, entry in manifest.files.items() if sizes.get(name) != entry["bytes"])
    if missing > free:
        if not all(split.tars for split in manifest.splits.values()):
            return ""  # betons are not streamed, and the copy says that there is no space
        return f"as a copy takes {format_bytes(missing)}, and {format_bytes(free)} of the disk are free"
    if cache_bytes is not None and missing > cache_bytes:
        return f"as a copy takes {format_bytes(missing)}, and cache_bytes allows {format_bytes(cache_bytes)}"
    return ""


def _folder_of(store: remote.Store, text: bytes, manifest: Manifest, say: remote.Say, tells: bool = False) -> Path:
    """The folder, with all in it but the shards. tells: say how much of that is fetched."""
    folder = remote.folder_of(store, text, "stream")
    files = {name: e for name, e in manifest.files.items() if not name.endswith((".tar", ".beton"))}
    try:
        make_folder(folder)
        with opened(folder), exclusive(folder.with_name(f".{folder.name}.fetch.lock"), say):
            missing = {name: entry for name, entry in files.items() if not _is_unchanged(folder / name, entry)}
            if tells and missing:
                size = format_bytes(sum(entry["bytes"] for entry in missing.values()))
                say(f"fetching {size} in {plural(len(missing), 'file')} of {store.where}, no shards")
            for name, entry in missing.items():
                store.fetch(name, entry, folder, say)
                os.utime(folder / name, ns=(time.time_ns(), stamp_of(entry)[1]))
            for path, content in ((folder / ORIGIN, f"{store.where}\n".encode()), (manifest_path(folder), text)):
                if not path.exists() or path.read_bytes() != content:
                    write_atomic(path, content)
    except OSError as e:
        raise Error(f"cannot keep {store.where} in {folder}: {e.strerror or e}") from None
    return folder


def _is_unchanged(path: Path, entry: FileEntry) -> bool:
    try:
        stat = os.lstat(path)
    except FileNotFoundError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == stamp_of(entry)
