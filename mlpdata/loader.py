"""A shard directory to batches on a device.

One index serves both formats (`ShardIndex`), so tars have random access too. Two tiers, chosen by size and said aloud:

resident  all pixels as one uint8 tensor on the device; a batch is one gather there.
stream    pixels stay in their files; a thread reads the next batches ahead, in an order that is shuffled by blocks.

The order of an epoch follows from (seed, epoch) alone. Ranks take equal slices of each global batch, so the sequence of
global batches is the same for any number of them.
"""

from __future__ import annotations

import io
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from mlpdata import beton, tar
from mlpdata.augment import Augment, Batch
from mlpdata.manifest import CODECS, Error, Manifest, ShardIndex, beton_path

RESIDENT_SHARE = 0.6  # of the device's free memory that a split may take
AHEAD = 4  # batches read ahead in the stream tier
BLOCK_SAMPLES = 1024  # neighbours read together in the stream tier: megabytes a seek instead of kilobytes
WINDOW_BLOCKS = 64  # blocks whose samples are shuffled among each other
RAW = CODECS.index("raw")


def load(root, split="train", batch_size=1024, device="cpu", **options):
    """Open a split of a shard directory. Returns a Loader; its options are documented there.

    Raises mlpdata.Error for a directory that is unfinished, damaged or lacks the split or format.
    """
    return Loader(root, split, batch_size=batch_size, device=device, **options)


class Loader:
    """Iterating it is one epoch of Batches; `len` is their number.

    root:        shard directory. split: its name; `val` and `test` stand for each other.
    batch_size:  samples a global batch.
    format:      "beton" or "tar"; None takes the beton where there is one.
    augment:     mlpdata.Augment applied on the device; None leaves uint8 (N, H, W, 3).
    shuffle:     a new order each epoch from (seed, epoch); else the order of the split.
    drop_last:   leave out a last batch that is not full.
    tier:        "resident" or "stream" forces one; None chooses by size.
    num_threads: that decode JPEGs and PNGs; None takes the cores.
    rank, world_size: this process takes its slice of each global batch; batch_size must be divisible.

    epoch: the number of the epoch that the next iteration gives. wait_s: seconds the consumer waited for
    pixels so far, without the augmentation's own work.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        format: str | None = None,
        augment: Augment | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        tier: str | None = None,
        num_threads: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.root = Path(root)
        self.manifest = Manifest.load(self.root)
        self.split = self.manifest.split(split)
        if batch_size < 1 or batch_size % world_size:
            raise Error(f"batch size {batch_size} must be positive and divisible by the {world_size} processes")
        self.batch_size, self.device, self.augment = batch_size, torch.device(device), augment
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch, self._step, self.wait_s = 0, 0, 0.0
        self.index = open_index(self.root, self.manifest, self.split, format)
        self.labels = np.ascontiguousarray(self.index.label, np.int64)
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            raise Error(
                f"{self.root}: split {self.split!r} has labels of more than {self.num_classes} classes; convert again"
            )
        self._reader = _Reader(self.index, num_threads or len(os.sched_getaffinity(0)))
        self.tier, self.tier_reason = _choose_tier(self._reader.total_bytes, self.device, tier)
        self._pixels = self._labels_there = None
        if self.tier == "resident":
            self._pixels = torch.from_numpy(self._reader.all()).to(self.device)
            self._labels_there = torch.from_numpy(self.labels).to(self.device)
        if drop_last and not len(self):
            raise Error(f"split {self.split!r} has {self.num_samples} samples, fewer than one batch of {batch_size}")

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return self.manifest.num_classes

    def __len__(self) -> int:
        n = self.num_samples
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole split in its own order: images uint8 (N, H, W, 3), labels int64 (N,)."""
        if self.tier == "resident" and self.device.type == "cpu":
            return self._pixels.numpy(), self.labels
        return self._reader.all(), self.labels

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Some samples by id, as stored: (n,) integers -> uint8 (n, H, W, 3)."""
        out = np.empty((len(ids), *self._reader.shape), np.uint8)
        self._reader.read(np.asarray(ids), out)
        return out

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: seed, epoch and the next step in it."""
        return {"seed": self.seed, "epoch": self.epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state, in the middle of an epoch if need be."""
        if state["seed"] != self.seed:
            raise Error(f"the saved loader state has seed {state['seed']}, this loader {self.seed}")
        self.epoch, self._step = state["epoch"], state["step"]

    def order(self, epoch: int) -> np.ndarray:
        """(N,) int64: the sample ids of an epoch in their order."""
        ids = np.arange(self.num_samples)
        if not self.shuffle:
            return ids
        rng = np.random.default_rng([self.seed, epoch])
        if self.tier == "resident":
            return rng.permutation(ids)
        # Blocks in random order, then samples at random within a window of blocks: the disk sees long reads.
        blocks = np.array_split(ids, max(1, -(-len(ids) // BLOCK_SAMPLES)))
        places = rng.permutation(len(blocks))
        windows = [places[k : k + WINDOW_BLOCKS] for k in range(0, len(places), WINDOW_BLOCKS)]
        return np.concatenate([rng.permutation(np.concatenate([blocks[k] for k in window])) for window in windows])

    def __iter__(self) -> Iterator[Batch]:
        order, first = self.order(self.epoch), self._step
        share = self.batch_size // self.world_size

        def ids_of(step: int) -> np.ndarray:
            whole = order[step * self.batch_size : (step + 1) * self.batch_size]
            if len(whole) == self.batch_size:
                return whole[self.rank * share : (self.rank + 1) * share]
            return np.array_split(whole, self.world_size)[self.rank]

        make = self._resident if self.tier == "resident" else self._stream
        batches = make(ids_of, range(first, len(self)))
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.wait_s += time.perf_counter() - started
            if batch is None:
                break
            if self.augment is not None:
                batch = self.augment.apply(batch, self.epoch, self.seed)
            # Advanced before the batch goes out: a state saved while it is in use goes on behind it.
            self._step += 1
            yield batch
        self.epoch, self._step = self.epoch + 1, 0

    def _resident(self, ids_of, steps) -> Iterator[Batch]:
        for step in steps:
            ids = torch.from_numpy(ids_of(step)).to(self.device, non_blocking=True)
            yield Batch(self._pixels.index_select(0, ids), self._labels_there.index_select(0, ids), ids)

    def _stream(self, ids_of, steps) -> Iterator[Batch]:
        ahead: queue.Queue = queue.Queue(AHEAD)
        stop = threading.Event()
        pin = self.device.type == "cuda"

        def put(item) -> bool:
            while not stop.is_set():
                try:
                    ahead.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def read() -> None:
            try:
                for step in steps:
                    ids = ids_of(step)
                    images = torch.empty((len(ids), *self._reader.shape), dtype=torch.uint8, pin_memory=pin)
                    self._reader.read(ids, images.numpy())
                    if not put((images, ids)):
                        return
                put(None)
            except BaseException as e:
                put(e)

        thread = threading.Thread(target=read, name="mlpdata-reader", daemon=True)
        thread.start()
        try:
            while True:
                item = ahead.get()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                images, ids = item
                labels = torch.from_numpy(self.labels[ids])
                yield Batch(*(t.to(self.device, non_blocking=pin) for t in (images, labels, torch.from_numpy(ids))))
        finally:
            stop.set()
            thread.join()


# ---------------------------------------------------------------------------------------------------- index, tier


def open_index(root: Path, manifest: Manifest, split: str, format: str | None) -> ShardIndex:
    """Index a split in one of its formats and check that every payload lies inside its file."""
    if format not in (None, "beton", "tar"):
        raise Error(f"format {format!r} is neither 'beton' nor 'tar'")
    if format == "beton" and not manifest.splits[split].beton:
        raise Error(f"{root} has no beton of split {split!r}; it has {', '.join(manifest.formats)}")
    if format == "tar" or not manifest.splits[split].beton:
        index = tar.open_index(root, manifest, split)
    else:
        index = beton.open_index(beton_path(root, split))
    try:
        sizes = np.array([path.stat().st_size for path in index.files], np.int64)
    except OSError as e:
        raise Error(f"cannot read {e.filename}: {e.strerror}") from None
    start, length = index.offset.astype(np.int64), index.num_bytes.astype(np.int64)
    beyond = (start < 0) | (length < 0) | (start > sizes[index.file] - length)
    if beyond.any():
        i = int(beyond.argmax())
        raise Error(f"{index.files[int(index.file[i])]} is cut short or damaged: sample {i} lies beyond its end")
    raw = index.codec == RAW
    if (raw & (length != index.width.astype(np.int64) * index.height * 3)).any():
        raise Error(f"{index.files[0]}: a raw sample's bytes do not fit its width and height; convert again")
    return index


def _choose_tier(num_bytes: int, device: torch.device, forced: str | None) -> tuple[str, str]:
    if forced not in (None, "resident", "stream"):
        raise Error(f"tier {forced!r} is neither 'resident' nor 'stream'")
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    else:
        free, where = _free_memory(), "memory"
    sizes = f"{num_bytes / 1e9:.2f} GB of pixels, {free / 1e9:.1f} GB free in {where}"
    if forced:
        return forced, f"{forced}, as asked: {sizes}"
    if num_bytes <= RESIDENT_SHARE * free:
        return "resident", f"resident: {sizes}"
    return "stream", f"stream: {sizes}, of which {RESIDENT_SHARE:.0%} may be used"


def _free_memory() -> int:
    """Bytes the system can give without swapping; where it does not say, half of what there is."""
    try:
        with open("/proc/meminfo") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


# --------------------------------------------------------------------------------------------------------- reading


class _Reader:
    """Payloads to pixels, by sample ids. The decoder and memory copies release the GIL, so threads do it."""

    def __init__(self, index: ShardIndex, num_threads: int):
        self._index = index
        height, width = int(index.height[0]), int(index.width[0])
        if (index.height != height).any() or (index.width != width).any():
            raise Error(
                f"{index.files[0]} holds images of different sizes, which do not stack into batches; "
                "convert with --resize squash or crop"
            )
        self.shape = (height, width, 3)
        self.total_bytes = len(index) * height * width * 3
        self._files = [np.memmap(path, np.uint8, "r") for path in index.files]
        self._all_raw = bool((index.codec == RAW).all())
        self._pool = ThreadPoolExecutor(num_threads, "mlpdata-decode") if num_threads > 1 else None
        self._num_threads = num_threads

    def all(self) -> np.ndarray:
        """Every sample, uint8 (N, H, W, 3)."""
        out = np.empty((len(self._index), *self.shape), np.uint8)
        if not self._all_raw:
            self._spread(np.arange(len(out)), out)
            return out
        # Raw samples lie one behind the other but for page ends and tar headers: copy by stretches of equal stride.
        size = int(np.prod(self.shape))
        flat = out.reshape(len(out), size)
        offset, file = self._index.offset.astype(np.int64), self._index.file
        stride = np.diff(offset)
        breaks = np.flatnonzero((np.diff(stride) != 0) | (np.diff(file[1:].astype(np.int64)) != 0)) + 1
        start = 0
        for stop in [*(breaks + 1).tolist(), len(out)]:
            if stop <= start:
                continue
            step = int(stride[start]) if stop - start > 1 else size
            same_file = file[start] == file[stop - 1]
            if not same_file or step < size:
                self._copy(np.arange(start, stop), flat[start:stop])
            else:
                source = self._files[int(file[start])]
                view = np.lib.stride_tricks.as_strided(source[int(offset[start]) :], (stop - start, size), (step, 1))
                flat[start:stop] = view
            start = stop
        return out

    def read(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Samples by id into out, uint8 (len(ids), H, W, 3)."""
        if self._all_raw:
            self._copy(ids, out.reshape(len(ids), -1))
        else:
            self._spread(ids, out)

    def _copy(self, ids: np.ndarray, flat: np.ndarray) -> None:
        size = flat.shape[1]
        for i in np.argsort(ids, kind="stable").tolist():  # in the order of the file
            start = int(self._index.offset[ids[i]])
            flat[i] = self._files[int(self._index.file[ids[i]])][start : start + size]

    def _spread(self, ids: np.ndarray, out: np.ndarray) -> None:
        pieces = np.array_split(np.arange(len(ids)), max(1, min(len(ids) // 32, 4 * self._num_threads)))
        work = [(ids[p], out[p[0] : p[-1] + 1]) for p in pieces if len(p)]
        if self._pool is None:
            for piece in work:
                self._decode(piece)
            return
        for _ in self._pool.map(self._decode, work):
            pass

    def _decode(self, piece: tuple[np.ndarray, np.ndarray]) -> None:
        ids, out = piece
        index = self._index
        for row, i in zip(out, ids.tolist(), strict=True):
            start, length = int(index.offset[i]), int(index.num_bytes[i])
            path = index.files[int(index.file[i])]
            data = self._files[int(index.file[i])][start : start + length]
            try:
                if index.codec[i] == RAW:
                    row.reshape(-1)[:] = data
                elif index.codec[i] == CODECS.index("jpg"):
                    pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=row)
                    if pixels.shape != self.shape:
                        raise ValueError(f"it has shape {pixels.shape} instead of {self.shape}")
                else:
                    row[:] = np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
            except Exception as e:
                raise Error(f"{path}: sample {i} at byte {start} cannot be decoded ({e}); convert again") from e
