"""TinyImageNet-200, read inside `tiny-imagenet-200.zip`."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from mlpdata.manifest import Error
from mlpdata.sources import Broken, Sample, Source, Unit
from mlpdata.sources.blob import PlainFile

ROOT = "tiny-imagenet-200"
IMAGES_A_UNIT = 2_000
MAX_IMAGE_BYTES = 16 << 20  # they have 2 kB; a larger claim is an attack or damage
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # PKZIP APPNOTE 4.3.7


class TinyImageNet(Source):
    """TinyImageNet's labelled splits: `train`, and `val` with the labels of val_annotations.txt.

    Classes are the sorted wnids (`wnids.txt` is not sorted). Raises Error for a missing, truncated or other archive.
    """

    codec = "jpg"
    release = ROOT

    def __init__(self, path: Path):
        self.path = Path(path)
        self.files = [str(path)]
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries = archive.infolist()
                names = {e.filename for e in self._entries}
                wnids = f"{ROOT}/wnids.txt"
                if wnids not in names:
                    raise Error(
                        f"{path} is not {ROOT}.zip: it has no {wnids}, its first member is {min(names, default='-')}"
                    )
                words = dict(line.split("\t", 1) for line in self._text(archive, "words.txt") if "\t" in line)
                self.classes = [(w, words.get(w, w)) for w in sorted(set(self._text(archive, "wnids.txt")))]
                self._annotations = {}
                for line in self._text(archive, "val/val_annotations.txt"):
                    file, _, rest = line.partition("\t")
                    self._annotations[file] = rest.split("\t")[0]
        except FileNotFoundError:
            raise Error(f"no archive at {path}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error) as e:
            raise Error(f"{path} is no whole zip archive ({e}); get it again") from None
        except KeyError as e:
            raise Error(f"{path} is not {ROOT}.zip: {e.args[0]}") from None
        self._labels = {wnid: i for i, (wnid, _) in enumerate(self.classes)}
        self._blob = PlainFile(self.path)

    def __getstate__(self):
        # The workers get what they need with each unit.
        return {**self.__dict__, "_entries": [], "_annotations": {}}

    @staticmethod
    def _text(archive: zipfile.ZipFile, name: str) -> list[str]:
        info = archive.getinfo(f"{ROOT}/{name}")
        if info.file_size > MAX_IMAGE_BYTES:
            raise Error(f"{archive.filename}: {name} claims {info.file_size} bytes")
        return [line.strip() for line in archive.read(info).decode("utf-8").splitlines() if line.strip()]

    def units(self) -> list[Unit]:
        rows: dict[str, list] = {"train": [], "val": []}
        for e in self._entries:
            parts = e.filename.split("/")
            if not parts[-1].lower().endswith((".jpeg", ".jpg")):
                continue
            if parts[:2] == [ROOT, "train"] and len(parts) == 5:
                wnid = parts[2]
            elif parts[:3] == [ROOT, "val", "images"] and len(parts) == 4:
                wnid = self._annotations.get(parts[3], "")
            else:
                continue  # test images have no labels
            label = self._labels.get(wnid, -1)
            row = (
                e.filename,
                label,
                e.header_offset,
                e.compress_size,
                e.file_size,
                e.compress_type,
                e.CRC,
                e.flag_bits,
            )
            rows[parts[1]].append(row)
        units = []
        for split, all_rows in rows.items():
            all_rows.sort(key=lambda r: r[2])  # in the order of the file
            for k in range(0, len(all_rows), IMAGES_A_UNIT):
                part = all_rows[k : k + IMAGES_A_UNIT]
                units.append(Unit(f"{split}-{k:06d}", split, len(part), sum(r[3] for r in part), part))
        return units

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        # Members of a unit lie close together: one read for all of them, plus what local headers may add at the end.
        start = unit.at[0][2]
        end = max(r[2] + r[3] for r in unit.at) + (1 << 16)
        whole = self._blob.read_at(start, end - start) if end - start < 2 * unit.num_bytes + (1 << 20) else None
        for name, label, offset, packed, size, method, crc, flags in unit.at:
            origin = name
            if whole is None:
                data = self._blob.read_at(offset, LOCAL_HEADER.size + (1 << 10) + packed)
                data = _member(data, 0, packed, size, method, crc, flags)
            else:
                data = _member(whole, offset - start, packed, size, method, crc, flags)
            if label < 0:
                yield Broken(origin, "no class is given for it")
            elif isinstance(data, str):
                yield Broken(origin, data)
            else:
                yield Sample(name.rsplit("/", 1)[1].rsplit(".", 1)[0].replace(".", "_"), data, label, origin)


def _member(data: bytes, at: int, packed: int, size: int, method: int, crc: int, flags: int) -> bytes | str:
    """One member's content from the bytes around it, or why it cannot be had."""
    if size > MAX_IMAGE_BYTES or packed > MAX_IMAGE_BYTES:
        return f"claims {max(size, packed)} bytes"
    if flags & 1:
        return "is encrypted"
    if at + LOCAL_HEADER.size > len(data):
        return "lies beyond the end of the archive"
    magic, *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(data, at)
    if magic != b"PK\3\4":
        return "has no local header where the directory says"
    start = at + LOCAL_HEADER.size + name_bytes + extra_bytes
    body = data[start : start + packed]
    if len(body) < packed:
        return "is cut short"
    if method == zipfile.ZIP_DEFLATED:
        try:
            body = zlib.decompressobj(-15).decompress(body, size + 1)
        except zlib.error as e:
            return f"cannot be decompressed: {e}"
    elif method != zipfile.ZIP_STORED:
        return f"uses compression method {method}"
    if len(body) != size or zlib.crc32(body) != crc:
        return "wrong CRC: its bytes are damaged"
    return body
