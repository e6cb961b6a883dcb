"""Files and folders before their content is decoded: names, the tree below a folder, stamps that show changes.

Names are used for estimates and order only (counts of a listing, which images are held out). `mlpdata.image` decides by
the content whether a file is an image.
"""

from __future__ import annotations

import functools
import glob
import itertools
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import xxhash

from mlpdata.errors import Error, first_line, reading
from mlpdata.image.limits import MAX_IMAGE_BYTES

KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
MAX_EXPANDED = 100_000  # files that a pattern's braces stand for
NUMBERED = re.compile(r"(.*?)(\d{1,9})(\D*|-of-\d{1,9}\D*)", re.DOTALL | re.ASCII)
MAX_LINKS = 1_000  # to one folder; folders of links to folders of links are 2^n paths

JPEG_SUFFIXES = (".jpeg", ".jpg", ".jpe", ".jfif")
IMAGE_SUFFIXES = (*JPEG_SUFFIXES, ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm",
                  ".pgm", ".pbm", ".pnm", ".avif", ".jp2")  # fmt: skip
SYSTEM_FILES = frozenset((".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "icon\r", ".gitkeep",
                          ".gitignore", ".gitattributes", ".nomedia"))  # fmt: skip
SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
                            ".trashes", ".spotlight-v100", ".fseventsd", ".ipynb_checkpoints", ".git", ".cache",
                            ".thumbnails", ".appledouble"))  # fmt: skip


def looks_like_image(name: str) -> bool:
    """Whether a name is that of an image: it has an image's ending, in any case, or none.

    >>> looks_like_image("a/n01440764_1.JPEG"), looks_like_image("scan.TIFF"), looks_like_image("notes.txt")
    (True, True, False)
    """
    name = name.rpartition("/")[2].lower()
    if name.endswith(IMAGE_SUFFIXES):
        return not name.startswith("._")  # the only system files with such an ending
    return "." not in name and not is_system(name)


def is_system(path: str) -> bool:
    """Whether a file was left beside the data by an operating system or a tool: AppleDouble, thumbnails and the like.

    >>> is_system("__MACOSX/train/._a.jpg"), is_system("cats/Thumbs.db"), is_system("cats/.hidden.jpg")
    (True, True, False)
    """
    folder, _, file = path.lower().rpartition("/")
    if file.startswith("._") or file in SYSTEM_FILES or file in SYSTEM_FOLDERS:
        return True
    return bool(folder) and _is_in_system_folder(folder)


@functools.lru_cache(1 << 10)  # called for every member of a tar, many of which share a folder
def _is_in_system_folder(folder: str) -> bool:
    return not SYSTEM_FOLDERS.isdisjoint(folder.split("/"))


def tree(root: str) -> Iterator[tuple[str, list[os.DirEntry]]]:
    """Every folder from `root` on: (its path below `root` with `/`, "" for `root`; its entries sorted by name).

    Links to folders are followed. System folders are listed but not entered. Raises Error for a folder that cannot be
    read, and for a link to a folder that contains it.
    """
    num_links: Counter[tuple[int, int]] = Counter()
    waiting: list[tuple[str, bool, tuple]] = [("", False, tuple(_identities_around(root)))]
    while waiting:
        below, is_link, around = waiting.pop()
        path = os.path.join(root, below) if below else root
        with reading(f"the folder {path}"), os.scandir(path) as iterator:
            status, entries = os.stat(path), sorted(iterator, key=lambda e: e.name)
        identity = (status.st_dev, status.st_ino)
        if identity in around:
            raise Error(f"{path} is the same folder as one around it: a loop; remove the link")
        num_links[identity] += is_link
        if num_links[identity] > MAX_LINKS:
            raise Error(f"{path} is linked to from more than {MAX_LINKS:,} places; remove links")
        yield below, entries
        inner = (*around, identity)
        for entry in reversed(entries):
            if is_folder(entry) and not is_system(entry.name + "/"):
                waiting.append((f"{below}/{entry.name}" if below else entry.name, entry.is_symlink(), inner))


def _identities_around(path: str) -> Iterator[tuple[int, int]]:
    for parent in Path(os.path.abspath(path)).parents:
        status = os.stat(parent)
        yield status.st_dev, status.st_ino


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def why_no_file(entry: os.DirEntry) -> str:
    """Why an entry that is no folder is no readable file either, without opening it; "" where it is a file."""
    try:
        if entry.is_file():
            return ""
        mode = entry.stat().st_mode
    except OSError as e:
        return f"a link that leads nowhere: {e.strerror}" if entry.is_symlink() else f"cannot be read: {e.strerror}"
    return f"no file but a {KINDS.get(stat.S_IFMT(mode), 'thing that only the system knows')}"


def read_file(path: str) -> bytes | str:
    """The content of a file that was listed, at most MAX_IMAGE_BYTES, or the reason why it cannot be read.

    It may have become a FIFO since, so opening it does not wait, and its kind is checked first. Raises Error where it
    vanished.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Error(f"{path} vanished while it was converted; convert again into another --out") from None
    except OSError as e:
        return f"cannot be opened: {e.strerror}"
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return "is no file any more"
        if status.st_size > MAX_IMAGE_BYTES:
            return f"has {status.st_size:,} bytes; at most {MAX_IMAGE_BYTES >> 20} MiB are read"
        data = os.read(handle, status.st_size)
        while len(data) < status.st_size and (more := os.read(handle, status.st_size - len(data))):
            data += more
        return data
    except OSError as e:
        return f"cannot be read: {e.strerror}"
    finally:
        os.close(handle)


def matching(path: Path) -> tuple[Path, list[Path]]:
    """(folder, paths in order) that a path or a pattern such as `data/*/train-*.tar` stands for.

    A path that exists literally is no pattern. The leading folders of a pattern that exist are taken literally too,
    whatever their names contain. Braces stand for several paths, as in a shell and in webdataset: see expanded.
    Raises Error where one of those is not there.
    """
    if os.path.lexists(path):
        return path.parent, [path]
    parts, root, n = path.parts, Path(), 0
    while n < len(parts) - 1 and os.path.isdir(root / parts[n]):
        root, n = root / parts[n], n + 1
    pattern = "/".join(parts[n:])
    files = sorted(glob.glob(pattern, root_dir=root))
    if not files and (names := expanded(pattern)) != [pattern]:
        for name in names:
            some = [name] if os.path.lexists(root / name) else glob.glob(name, root_dir=root)
            if not some:
                raise Error(f"{root / name} is not there, which {path} lists")
            files += sorted(some)
    return root, [root / name for name in dict.fromkeys(files)]


def expanded(pattern: str) -> list[str]:
    """What a text with braces stands for: `{a,b}` are alternatives, `{08..11}` counts. Raises Error for too many.

    >>> expanded("{train,val}-{09..10}.tar")
    ['train-09.tar', 'train-10.tar', 'val-09.tar', 'val-10.tar']
    >>> expanded("{a}.tar")
    ['{a}.tar']
    """
    parts = [_alternatives(part) for part in re.split(r"(\{[^{}]*\})", pattern)]
    if math.prod(map(len, parts)) > MAX_EXPANDED:
        raise Error(f"{pattern} stands for more than {MAX_EXPANDED:,} files; give a directory or a pattern with *")
    return ["".join(words) for words in itertools.product(*parts)]


def _alternatives(part: str) -> Sequence[str]:
    """What a part of a pattern stands for; itself where it is no braces with a list or a range in them."""
    if count := re.fullmatch(r"\{(\d{1,18})\.\.(\d{1,18})\}", part):
        first, last = map(int, count.groups())
        step = 1 if first <= last else -1
        return [f"{k:0{len(count[1])}}" for k in range(first, last + step, step)[: MAX_EXPANDED + 1]]
    return part[1:-1].split(",") if part.startswith("{") and "," in part else [part]


def stamp(path: str, without: str = "") -> str:
    """A text that changes when a file, or anything below a folder, does: made of sizes and times of change.

    For a folder it is two digests. The first is of names and sizes alone, and the same for a copy.
    without: a folder that may lie below: neither its content nor its existence counts.
    """
    try:
        if not os.path.isdir(path):
            return _stamp(os.stat(path))
        content, digest = xxhash.xxh3_128(), xxhash.xxh3_128()
        left_out = os.path.relpath(os.path.realpath(without), os.path.realpath(path)) + "/" if without else "../"
        for below, entries in tree(path):
            files = [e for e in entries if not (is_folder(e) or is_system(e.name))]
            leads_to_left_out = not files and left_out.startswith(f"{below}/")
            if not (leads_to_left_out or f"{below}/".startswith(left_out)):
                content.update(f"{below}\0".encode("utf-8", "surrogateescape"))
                for entry in files:
                    name, entry_stamp = entry.name.encode("utf-8", "surrogateescape"), _entry_stamp(entry)
                    content.update(name + b"\0%s\0" % entry_stamp.partition(",")[0].encode())
                    digest.update(entry_stamp.encode())
        digest.update(content.digest())
        return f"{content.hexdigest()} {digest.hexdigest()}"
    except OSError as e:
        return f"cannot be read: {e.strerror or first_line(e)}"


def _entry_stamp(entry: os.DirEntry) -> str:
    try:
        return _stamp(entry.stat())
    except OSError:
        return "gone"  # or a link to nowhere


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns"


def two_versions(names: Iterable[str]) -> list[str]:
    """Two names that count the same files differently, where there are some: a later upload beside an earlier one.

    >>> two_versions(["a-00000-of-00001.parquet", "b-0-of-2.parquet", "a-00000-of-00002.parquet"])
    ['a-00000-of-00001.parquet', 'a-00000-of-00002.parquet']
    """
    totals: dict[tuple[str, str], tuple[int, str]] = {}
    for name in sorted(names):
        if match := re.fullmatch(r"(.*?)\d{1,9}-of-(\d{1,9})(\D*)", name, re.DOTALL | re.ASCII):
            total, first = totals.setdefault((match[1], match[3]), (int(match[2]), name))
            if total != int(match[2]):
                return [first, name]
    return []


def missing_names(names: Iterable[str]) -> list[str]:
    """Names that are missing in a row of numbered ones. Where as many are missing as there, they were chosen so.

    >>> missing_names(["a-000.tar", "a-001.tar", "a-003.tar", "b-0.tar"]), missing_names(["a-0.tar", "a-8.tar"])
    (['a-002.tar'], [])
    >>> missing_names(["a-00000-of-00003.parquet", "a-00001-of-00003.parquet"])
    ['a-00002-of-00003.parquet']
    """
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        if match := NUMBERED.fullmatch(name):
            rows.setdefault((match[1], match[3]), {})[int(match[2])] = match[2]
    missing = []
    for (before, after), numbers in rows.items():
        total = re.match(r"-of-(\d{1,9})", after)
        row = range(int(total[1])) if total else range(min(numbers), max(numbers) + 1)
        if len(row) < 2 * len(numbers):
            width = min(map(len, numbers.values()))
            missing += [f"{before}{number:0{width}d}{after}" for number in row if number not in numbers]
    return missing
