"""Shards to batches on a device: `load` and the `Loader` that it returns.

One index serves every format (mlpdata.shards.open), so tars have random access too. Where the pixels are while an
epoch runs is a tier, chosen by size and said aloud (mlpdata.loader.tiers). The order of an epoch follows from (seed,
epoch) alone (mlpdata.loader.order); ranks take equal slices of each global batch, so its sequence is the same for any
number of them.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpdata.augment.augment import Augment
from mlpdata.augment.batch import Batch
from mlpdata.augment.chroma import from_ycc420
from mlpdata.errors import Error
from mlpdata.loader import state, tiers
from mlpdata.loader.checksums import check_files
from mlpdata.loader.options import LoadOptions, check_flag, merge, shown, whole
from mlpdata.loader.order import EpochOrder, EpochSteps
from mlpdata.loader.reader import Reader
from mlpdata.loader.subset import choose, class_numbers, ids_of
from mlpdata.shards import remote
from mlpdata.shards.classes import read_classes
from mlpdata.shards.open import open_split
from mlpdata.system.memory import free_memory
from mlpdata.system.threads import cores

PSNR_SAMPLES = 512


class Loader:
    """Open a split of a shard directory, a `.beton` file or WebDataset tars. `mlpdata.load(...)` is the same call.

    Iterating it is one epoch of Batches; `len` is their number. Every `iter` begins the next epoch, however far the one
    before it went, unless a state was just loaded. Iterations that run side by side do not disturb each other; `epoch`
    and `state_dict` say where the one that began last is.

    root:        shard directory, also as hf:OWNER/NAME or a URL, of which a verified copy is made in the cache; or a
                 `.beton` file of ours or of ffcv's own writer; or a WebDataset tar, a pattern of tars, or a directory
                 of nothing but tars.
    split:       its name; `val` and `test` stand for each other. Without meaning for single files.
    batch_size:  samples in a global batch.
    device:      where batches are wanted: "cpu", "cuda", "cuda:1", ...
    format:      "beton" or "tar"; None takes the beton where there is one.
    augment:     mlpdata.Augment, applied on the device; None gives the stored pixels, uint8 (N, H, W, 3).
    shuffle:     each epoch has a new order, which follows from (seed, epoch); False: the order of the subset, or else
                 of the split.
    seed:        of orders, augmentation and subsets: 0 to 2**63 - 1.
    drop_last:   leave out a last batch that is not full. False: the ranks share it as evenly as possible; if it has
                 fewer samples than there are ranks, some ranks get an empty batch. Every rank sees `len` batches.
    infinite:    iterating never ends: epochs follow one another. `len` stays the batches of one epoch.
    subset:      load only some samples: a count or a share (float) of them, drawn at random by the seed; or a mask of
                 booleans, one for each sample of the split; or a slice; or a list or array of ids, whose order and
                 repetitions are kept. A sample that comes twice in an epoch is augmented alike both times. Together
                 with classes: of the ids, those with one of these labels.
    options:     the less common options, see LoadOptions. Each is also a keyword: load(root, tier="stream").

    epoch: the number of the current epoch; after its last batch, and before the first iteration, of the next one.
    wait_s: seconds that the consumer has waited for pixels so far, without the augmentation's own work. labels, ids:
    int64 (num_samples,), read-only, of the samples in their own order; an id is the sample's place in the split, also
    where a subset is loaded. tier, tier_reason: where the pixels are, and why.

    Raises mlpdata.Error for shards that are unfinished, damaged or lack the split or format, and for wrong options.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        batch_size: int = 1024,
        device: str | torch.device = "cpu",
        *,
        format: str | None = None,
        augment: Augment | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        infinite: bool = False,
        subset: int | float | slice | Sequence[int] | Sequence[bool] | np.ndarray | torch.Tensor | None = None,
        options: LoadOptions | None = None,
        **more: Any,
    ):
        for name, flag in {"shuffle": shuffle, "drop_last": drop_last, "infinite": infinite}.items():
            check_flag(name, flag)
        batch_size, seed = whole("batch_size", batch_size, 1), whole("seed", seed, 0)
        options = merge(options, more, KEYWORDS)
        if batch_size % options.world_size:
            raise Error(f"batch size {batch_size} is not divisible by the {options.world_size} processes")
        if augment is not None and not isinstance(augment, Augment):
            raise Error(
                f"augment is an mlpdata.Augment, not {shown(augment)}; dataset(transform) takes other transforms"
            )
        self.root, self.device = _local(root), _device(device)
        self._where = {"path": self.root.absolute(), "split": split, "format": format}
        self._where |= {"image_column": options.image_column, "label_column": options.label_column}
        opened = open_split(**self._where)
        self.manifest, self.split, self.num_classes = opened.manifest, opened.split, opened.num_classes
        self.batch_size, self.augment = batch_size, augment
        self.shuffle, self.seed, self.drop_last, self.infinite = bool(shuffle), seed, bool(drop_last), infinite
        self.rank, self.world_size, self.wait_s = options.rank, options.world_size, 0.0
        self._opened, self.index = opened, opened.index
        self._res = options.res
        self._choose_samples(subset, options.classes, options.relabel)
        self._reader = Reader(self.index, options.num_threads or cores(), options.res)
        if options.check:
            if self.manifest is None:
                raise Error(f"{root} has no manifest to check against")
            check_files(self.root, self.manifest, self.split, self._reader)
        self._place_ids: np.ndarray | None = None
        self._blocks: tuple[int, int] | None = None  # of the orders to come
        self._open_tier(options.tier, options.pixels)
        self.pixels = options.pixels if self.tier == "resident" else "rgb"
        self._position = state.Position(0, 0, self._blocks)  # of the iteration that was begun last
        if drop_last and not len(self):
            raise Error(f"split {self.split!r} has {self.num_samples} samples, fewer than one batch of {batch_size}")

    # --------------------------------------------------------------------------------------------------- opening

    def _choose_samples(self, subset, classes, relabel: bool) -> None:
        """Set labels and ids: all samples, or those asked for."""
        labels, allowed, self._classes = np.array(self.index.label, np.int64), None, None
        if classes is not None:
            numbers = class_numbers(classes, self.num_classes, self._class_names, self.root)
            order = np.argsort(numbers)
            allowed = np.flatnonzero(np.isin(labels, numbers))
            self._classes = np.array(numbers if relabel else sorted(numbers), np.int64)
            if relabel:
                labels[allowed] = order[np.searchsorted(numbers, labels[allowed], sorter=order)]
                self.num_classes = len(numbers)
        self._ids = choose(len(labels), subset, allowed, self.seed)
        if self._ids is not None and np.array_equal(self._ids, np.arange(len(labels))):
            self._ids = None  # all in their own order
        self._labels = labels if self._ids is None else labels[self._ids]
        if not len(self._labels):
            raise Error(f"subset and classes leave no samples of split {self.split!r}")

    def _class_names(self) -> list[str]:
        """As the source calls them, in label order; none where there is no list of them."""
        return [name for name, _ in read_classes(self.root, self.manifest)] if self.manifest else []

    def _open_tier(self, forced: str, pixels: str) -> None:
        reader, n, ids = self._reader, self.num_samples, self._ids
        rgb_bytes = n * reader.image_bytes
        height, width, _ = reader.shape
        small_bytes = n * (height * width + 2 * ((height + 1) // 2) * ((width + 1) // 2))
        self.tier, self.tier_reason = _choose_tier(
            rgb_bytes, small_bytes if pixels == "ycc420" else rgb_bytes, self.device, forced
        )
        if pixels == "ycc420":
            self.tier_reason += self._ycc_reason()
        if self.tier == "resident":
            self._tier = tiers.Resident(reader, self._labels, ids, self.device, pixels)
        elif self.tier == "pinned":
            self._tier = tiers.Pinned(reader, self._labels, ids, self.device)
        else:
            files = int(self.index.num_bytes.sum(dtype=np.int64))
            direct = files > tiers.SHARE * free_memory()
            how = "past the page cache, which could not hold them" if direct else "through the page cache"
            self.tier_reason += f"; {files / 1e9:.2f} GB of files read in blocks, {how}"
            self._tier = tiers.Stream(reader, self._labels, ids, self.device, direct)
            self._blocks = tiers.block_shape(reader, n)

    def _ycc_reason(self) -> str:
        if self.tier != "resident":
            return "; pixels ycc420 concerns the resident tier only, these stay RGB"
        some = np.unique(np.linspace(0, self.num_samples - 1, PSNR_SAMPLES).astype(np.int64))
        psnr = tiers.ycc420_psnr(self.read(self.ids[some]))
        return f"; luma in full and chroma at half resolution: {psnr:.1f} dB on {len(some)} of these images"

    # ------------------------------------------------------------------------------------------------- as a whole

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of an image as it is loaded."""
        return self._reader.shape

    @property
    def num_threads(self) -> int:
        return self._reader.num_threads

    @property
    def num_samples(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> np.ndarray:
        return _read_only(self._labels)

    @property
    def ids(self) -> np.ndarray:
        return _read_only(np.arange(self.num_samples) if self._ids is None else self._ids)

    @property
    def epoch(self) -> int:
        return self._position.epoch

    def __len__(self) -> int:
        n = self.num_samples
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All samples in their own order: images uint8 (N, H, W, 3), labels int64 (N,), both read-only.

        No copy where the pixels are resident on the CPU, or where raw ones lie in one file at even distances (a tar;
        a beton of a single page): then they are a read-only map of the file, which must stay as it is.
        """
        if self.tier == "resident":
            return _read_only(self._tier.rgb().cpu().numpy()), self.labels
        mapped = self._mapped()
        if mapped is None:
            mapped = tiers.load_pixels(self._reader, self.ids, torch.device("cpu"), ycc=False)[0].numpy()
        return _read_only(mapped), self.labels

    def _mapped(self) -> np.ndarray | None:
        index, shape, n = self.index, self._reader.shape, self.num_samples
        if self._ids is not None or len(index.files) > 1 or not self._reader.all_raw:
            return None
        steps = np.diff(index.offset)
        step = int(steps[0]) if n > 1 else self._reader.image_bytes
        if step < self._reader.image_bytes or (steps != step).any():
            return None
        try:
            self._reader.check_stamp(0, os.stat(index.files[0]))
            size = (n - 1) * step + self._reader.image_bytes
            flat = np.memmap(index.files[0], np.uint8, "r", int(index.offset[0]), (size,))
        except OSError as e:
            raise Error(f"cannot read {index.files[0]}: {e.strerror}") from None
        strides = (step, shape[1] * shape[2], shape[2], 1)
        return np.lib.stride_tricks.as_strided(flat, (n, *shape), strides, writeable=False)

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Some samples by id, as stored: (n,) integers -> uint8 (n, H, W, 3)."""
        ids = ids_of(ids, len(self.index))
        out = np.empty((len(ids), *self._reader.shape), np.uint8)
        self._reader.read(ids, out)
        return out

    def dataset(self, transform=None):
        """The same samples as a torch Dataset, for a DataLoader of your own: mlpdata.loader.dataset.TorchDataset."""
        from mlpdata.loader.dataset import TorchDataset

        found = self._opened.digest, self._reader.stamps
        return TorchDataset(self._where, self._res, found, self._ids, self.labels, transform)

    # -------------------------------------------------------------------------------------------------- iterating

    def order(self, epoch: int) -> np.ndarray:
        """(num_samples,) int64: the sample ids of an epoch in their order."""
        plan = self._plan(epoch, self._blocks, range(0))
        rows = plan.to_rows(plan.order.take(0, self.num_samples))
        return rows if self._ids is None else self._ids[rows]

    def _plan(self, epoch: int, blocks: tuple[int, int] | None, steps: range) -> EpochSteps:
        in_blocks = blocks is not None and self.shuffle
        if in_blocks and self._place_ids is None:
            # Blocks are of neighbours in the files; samples mostly lie there in their own order.
            places = self._reader.by_place(self._ids)
            self._place_ids = np.empty(0, np.int64) if places is None else places
        place_ids = self._place_ids if in_blocks and len(self._place_ids) else None
        order = EpochOrder(self.num_samples, self.seed, epoch, self.shuffle, blocks)
        following = EpochOrder(self.num_samples, self.seed, epoch + 1, self.shuffle, self._blocks)
        return EpochSteps(order, following, place_ids, self.batch_size, self.rank, self.world_size, steps)

    def __iter__(self) -> Iterator[Batch]:
        """Begin the next epoch, or go on from the state that was just loaded."""
        if self._position.begun:
            self._position = state.Position(self._position.epoch + 1, 0, self._blocks)
        self._position.begun = True
        return self._iterate(self._position)

    def _iterate(self, position: state.Position) -> Iterator[Batch]:
        while True:
            epoch = position.epoch
            batches = self._tier.batches(self._plan(epoch, position.blocks, range(position.step, len(self))))
            try:
                while True:
                    started = time.perf_counter()
                    batch = next(batches, None)
                    self.wait_s += time.perf_counter() - started
                    if batch is None:
                        break
                    if self.augment is not None:
                        batch = self.augment.apply(batch, epoch, self.seed)
                    elif self.pixels == "ycc420":
                        batch = Batch(from_ycc420(batch.images, batch.chroma), batch.labels, batch.ids)
                    # Moved on before the batch goes out: a state saved while it is in use goes on behind it, and who
                    # takes `len` batches and no more has had the epoch.
                    position.step += 1
                    if position.step == len(self):
                        position.epoch, position.step, position.begun = epoch + 1, 0, False
                        position.blocks = self._blocks
                    yield batch
            finally:
                batches.close()
            if not self.infinite:
                return
            position.begun = True

    # ------------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict:
        """Where the loader is: numbers, strings and lists. Taken while a batch is in use, it goes on with the next one.

        It holds for any number of ranks, any device, and for any tier but this: the stream's order is one of blocks,
        which the other tiers can go on with; the stream cannot go on with theirs in the middle of an epoch.
        """
        return state.pack(self._position, self._facts)

    def load_state_dict(self, saved: dict) -> None:
        """Have the next iteration go on from a state, in the middle of an epoch if need be.

        Raises Error where it is malformed, or where this loader would give other batches than the one that was saved:
        other data, another subset, classes, image size, seed or shuffle, and in the middle of an epoch another size
        of batch.
        """
        position = state.unpack(saved, self._facts, len(self))
        if position.step and self.shuffle and self.tier == "stream" and position.blocks is None:
            raise Error(
                "the loader state was saved in the middle of an epoch whose order does not go by blocks, which "
                "the stream tier cannot go on with: load with tier='pinned' or 'resident', or resume at an epoch's "
                "start"
            )
        if not position.step or not (self.shuffle or self.tier != "stream"):  # unshuffled, blocks make no difference
            position.blocks = self._blocks
        self._position = position

    @cached_property
    def _facts(self) -> dict:
        """What the sequence of batches follows from, the number of processes aside."""
        digest = lambda array: None if array is None else hashlib.sha256(array.tobytes()).hexdigest()[:16]  # noqa: E731
        return {
            "data": self._opened.digest,
            "classes": digest(self._classes),
            "subset": digest(self._ids),
            "num_samples": self.num_samples,
            "size": "x".join(map(str, self.shape)),
            "seed": self.seed,
            "shuffle": self.shuffle,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
        }


KEYWORDS = [p.name for p in inspect.signature(Loader).parameters.values() if p.kind != p.VAR_KEYWORD][4:]
load = Loader  # what users write


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _local(root) -> Path:
    """The path of what is to be opened, a verified copy where it is elsewhere."""
    try:
        text = os.fsdecode(root)
    except TypeError:
        text = ""
    if not text or "\0" in text:
        raise Error(f"{shown(root)} is no path of a shard directory, a beton or tars")
    return remote.local_copy(text)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        raise Error(f"there is no device {shown(name)}; take cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise Error(f"device {name!r}: batches go to cpu or cuda; move them on from there")
    if device.type == "cpu":
        return device
    if not (device.index or 0) < torch.cuda.device_count():
        raise Error(f"device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices")
    # With its number: another thread has a current device of its own.
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _choose_tier(rgb_bytes: int, resident_bytes: int, device: torch.device, forced: str) -> tuple[str, str]:
    """(tier, why), from the bytes of all pixels as RGB and as the resident tier would hold them."""
    host, share = free_memory(), tiers.SHARE
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    else:
        free, where = host, "memory"
    said = f"{resident_bytes / 1e9:.2f} GB of pixels, {free / 1e9:.1f} GB free in {where}"
    if forced != "auto":
        return forced, f"{forced}, as asked: {said}"
    if resident_bytes <= share * free:
        return "resident", f"resident: {said}"
    said += f", of which {share:.0%} may be used"
    if device.type == "cuda" and rgb_bytes <= share * host:
        return "pinned", f"pinned: {said}; {host / 1e9:.1f} GB free in memory"
    return "stream", f"stream: {said}"
