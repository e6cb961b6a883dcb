"""Shards to batches on a device: `load` and the `Loader` that it returns.

One index serves every format (mlpdata.index), so tars have random access too. Where the pixels are while an epoch runs
is a tier, chosen by size and said aloud (mlpdata.tiers). The order of an epoch follows from (seed, epoch) alone
(mlpdata.epoch); ranks take equal slices of each global batch, so its sequence is the same for any number of them.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from mlpdata import remote, tiers
from mlpdata.augment import Augment, Batch
from mlpdata.checksums import check_files
from mlpdata.epoch import Order, permute
from mlpdata.errors import Error
from mlpdata.index import open_split
from mlpdata.manifest import read_classes
from mlpdata.memory import free_memory
from mlpdata.pixels import from_ycc420
from mlpdata.reader import Reader

PSNR_SAMPLES = 512


def load(root, split="train", batch_size=1024, device="cpu", **options):
    """Open a split of a shard directory, a `.beton` file or WebDataset tars. Returns a Loader, which documents it all.

    Raises mlpdata.Error for what is unfinished, damaged or lacks the split or format.
    """
    return Loader(root, split, batch_size=batch_size, device=device, **options)


class Loader:
    """Iterating it is one epoch of Batches; `len` is their number.

    root:        shard directory, also as hf:OWNER/NAME or a URL, of which a verified copy is made in the cache; or a
                 `.beton` file of ours or of ffcv's own writer; or a WebDataset tar, a pattern of tars, or a directory
                 of nothing but tars.
    split:       its name; `val` and `test` stand for each other. Without meaning for single files.
    batch_size:  samples a global batch.
    format:      "beton" or "tar"; None takes the beton where there is one.
    image_column, label_column: which fields of a `.beton` file of others hold the image and the class. None: `image`
                 and `label`, or else the only RGB image and the only int field there are, which a warning says.
    augment:     mlpdata.Augment applied on the device; None leaves uint8 (N, H, W, 3).
    shuffle:     a new order each epoch from (seed, epoch); else the order of the split.
    drop_last:   leave out a last batch that is not full. Else the ranks share it as evenly as it goes, and where it
                 has fewer samples than there are ranks, some get a batch of none: every rank sees `len` batches.
    infinite:    iterating never ends; epochs follow one another. `len` stays the batches of one.
    subset:      only some samples: a count or a share (float), drawn at random by the seed; or their ids.
    classes:     only samples with these labels: numbers, or names in the source (wnids). Labels stay as they are.
    relabel:     with classes: labels become the positions in that list, and num_classes its length.
    res:         resize every image to res x res while it is read, for images of different sizes.
    tier:        "resident", "pinned" or "stream" forces one; None chooses by size.
    pixels:      "ycc420" keeps luma in full and chroma at half resolution in the resident tier: half the memory;
                 tier_reason says what that costs on this very data. Batches without augment are RGB again.
    check:       compare the split's files with the manifest's sha256 first (about a second a gigabyte and core).
    num_threads: that read and decode; None takes the cores.
    rank, world_size: this process takes its slice of each global batch; batch_size must be divisible. In the stream
                 tier every rank reads all the blocks and decodes its own samples.

    epoch: the number of the epoch that the next iteration gives. wait_s: seconds the consumer waited for pixels so
    far, without the augmentation's own work. labels, ids: int64 (num_samples,), of the samples in their own order; an
    id is the place in the split, also where a subset is loaded. tier, tier_reason: where the pixels are, and why.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        format: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        augment: Augment | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        infinite: bool = False,
        subset: int | float | Sequence[int] | None = None,
        classes: Sequence[int | str] | None = None,
        relabel: bool = False,
        res: int | None = None,
        tier: str | None = None,
        pixels: str = "rgb",
        check: bool = False,
        num_threads: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise Error(f"batch size {batch_size} must be positive and divisible by the {world_size} processes")
        if not 0 <= rank < world_size:
            raise Error(f"rank {rank} is not one of {world_size} processes, which count from 0")
        if tier not in (None, *tiers.TIERS):
            raise Error(f"tier {tier!r} is none of {', '.join(tiers.TIERS)}")
        if pixels not in tiers.PIXELS:
            raise Error(f"pixels {pixels!r} is neither 'rgb' nor 'ycc420'")
        self.root, self.device = remote.local_copy(root), _device(device)
        columns = {"image_column": image_column, "label_column": label_column}
        opened = open_split(self.root, split, format, **columns)
        self.manifest, self.split, self.num_classes = opened.manifest, opened.split, opened.num_classes
        self.batch_size, self.augment = batch_size, augment
        self.shuffle, self.seed, self.drop_last, self.infinite = shuffle, seed, drop_last, infinite
        self.rank, self.world_size = rank, world_size
        self.epoch, self._step, self.wait_s = 0, 0, 0.0
        self.index = opened.index
        self._where = {"root": str(root), "split": split, "format": format, "res": res, **columns}
        self._choose_samples(subset, classes, relabel)
        self._reader = Reader(self.index, num_threads or len(os.sched_getaffinity(0)), res)
        if check:
            if self.manifest is None:
                raise Error(f"{root} has no manifest to check against")
            check_files(self.root, self.manifest, self.split, self._reader)
        self._place_ids: np.ndarray | None = None
        self._blocks: tuple[int, int] | None = None  # of the orders to come
        self._open_tier(tier, pixels)
        self.pixels = pixels if self.tier == "resident" else "rgb"
        self._blocks_now = self._blocks  # of the order that is being iterated
        self._resume: dict | None = None  # a state that the next iteration goes on from
        self._iteration = lambda: None  # a weak reference: a loader that is let go takes its open iteration with it
        if drop_last and not len(self):
            raise Error(f"split {self.split!r} has {self.num_samples} samples, fewer than one batch of {batch_size}")

    # --------------------------------------------------------------------------------------------------- opening

    def _choose_samples(self, subset, classes, relabel: bool) -> None:
        """Set labels and ids: all samples, or those asked for."""
        labels, n = np.ascontiguousarray(self.index.label, np.int64), len(self.index)
        chosen = None
        if classes is not None:
            numbers = self._class_numbers(classes)
            position = np.full(self.num_classes, -1, np.int64)
            position[numbers] = np.arange(len(numbers))
            chosen = np.flatnonzero(position[labels] >= 0)
            if relabel:
                labels, self.num_classes = position[labels], len(numbers)
        if isinstance(subset, (int, float, np.integer)) and not isinstance(subset, bool):
            available = n if chosen is None else len(chosen)
            count = round(subset * available) if isinstance(subset, float) else int(subset)
            if not 1 <= count <= available or (isinstance(subset, float) and subset > 1):
                raise Error(f"subset {subset} is not a share or count of the {available} samples there are")
            drawn = np.sort(permute(np.arange(count), available, f"mlpdata subset {self.seed}"))
            chosen = drawn if chosen is None else chosen[drawn]
        elif subset is not None:
            asked = np.unique(np.asarray(subset, np.int64))
            if len(asked) and not 0 <= asked[0] <= asked[-1] < n:
                raise Error(f"subset names samples beyond the {n} of split {self.split!r}")
            chosen = asked if chosen is None else np.intersect1d(chosen, asked)
        if chosen is not None and not len(chosen):
            raise Error(f"subset and classes leave no samples of split {self.split!r}")
        self._ids = chosen
        self.labels = labels if chosen is None else labels[chosen]

    def _class_numbers(self, classes) -> list[int]:
        names = {}
        if self.manifest is not None and any(isinstance(c, str) for c in classes):
            names = {name: number for number, (name, _) in enumerate(read_classes(self.root, self.manifest))}
        numbers = [names.get(c, -1) if isinstance(c, str) else int(c) for c in classes]
        for c, number in zip(classes, numbers, strict=True):
            if not 0 <= number < self.num_classes:
                raise Error(f"{self.root} has no class {c!r}; it has {self.num_classes} classes")
        if len(set(numbers)) < len(numbers):
            raise Error("classes names a class twice")
        return numbers

    def _open_tier(self, forced: str | None, pixels: str) -> None:
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
            self._tier = tiers.Resident(reader, self.labels, ids, self.device, pixels)
        elif self.tier == "pinned":
            self._tier = tiers.Pinned(reader, self.labels, ids, self.device)
        else:
            files = int(self.index.num_bytes.sum(dtype=np.int64))
            direct = files > tiers.SHARE * free_memory()
            how = "past the page cache, which could not hold them" if direct else "through the page cache"
            self.tier_reason += f"; {files / 1e9:.2f} GB of files read in blocks, {how}"
            self._tier = tiers.Stream(reader, self.labels, ids, self.device, direct)
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
        return len(self.labels)

    @property
    def ids(self) -> np.ndarray:
        return np.arange(self.num_samples) if self._ids is None else self._ids

    def __len__(self) -> int:
        n = self.num_samples
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All samples in their own order: images uint8 (N, H, W, 3), labels int64 (N,).

        No copy where the pixels are resident on the CPU, or where raw ones lie in one file at even distances (a tar;
        a beton of a single page): then they are a read-only map of the file, which must stay as it is.
        """
        if self.tier == "resident":
            return self._tier.rgb().cpu().numpy(), self.labels
        mapped = self._mapped()
        if mapped is None:
            mapped = tiers.load_pixels(self._reader, self.ids, torch.device("cpu"), ycc=False)[0].numpy()
        return mapped, self.labels

    def _mapped(self) -> np.ndarray | None:
        index, shape, n = self.index, self._reader.shape, self.num_samples
        if self._ids is not None or len(index.files) > 1 or not self._reader.all_raw:
            return None
        steps = np.diff(index.offset)
        step = int(steps[0]) if n > 1 else self._reader.image_bytes
        if step < self._reader.image_bytes or (steps != step).any():
            return None
        flat = np.memmap(
            index.files[0], np.uint8, "r", int(index.offset[0]), ((n - 1) * step + self._reader.image_bytes,)
        )
        strides = (step, shape[1] * shape[2], shape[2], 1)
        return np.lib.stride_tricks.as_strided(flat, (n, *shape), strides, writeable=False)

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Some samples by id, as stored: (n,) integers -> uint8 (n, H, W, 3)."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self.index):
            raise Error(f"split {self.split!r} has no sample {int(ids.max() if ids.min() >= 0 else ids.min())}")
        out = np.empty((len(ids), *self._reader.shape), np.uint8)
        self._reader.read(ids, out)
        return out

    def dataset(self, transform=None):
        """The same samples as a torch.utils.data.Dataset, for a DataLoader of your own: mlpdata.dataset.Samples."""
        from mlpdata.dataset import Samples

        return Samples(self._where, self._ids, self.labels, transform)

    # -------------------------------------------------------------------------------------------------- iterating

    def order(self, epoch: int) -> np.ndarray:
        """(num_samples,) int64: the sample ids of an epoch in their order."""
        plan = self._plan(epoch, self._blocks, range(0))
        rows = plan.to_rows(plan.order.take(0, self.num_samples))
        return rows if self._ids is None else self._ids[rows]

    def _plan(self, epoch: int, blocks: tuple[int, int] | None, steps: range) -> tiers.Plan:
        in_blocks = blocks is not None and self.shuffle
        if in_blocks and self._place_ids is None:
            # Blocks are of neighbours in the files; samples mostly lie there in their own order.
            places = self._reader.by_place()
            if places is not None and self._ids is not None:
                places = places[np.isin(places, self._ids)]
                places = np.searchsorted(self._ids, places)
            self._place_ids = np.empty(0, np.int64) if places is None else places
        place_ids = self._place_ids if in_blocks and len(self._place_ids) else None
        order = Order(self.num_samples, self.seed, epoch, self.shuffle, blocks)
        following = Order(self.num_samples, self.seed, epoch + 1, self.shuffle, self._blocks)
        return tiers.Plan(order, following, place_ids, self.batch_size, self.rank, self.world_size, steps)

    def __iter__(self) -> Iterator[Batch]:
        """Begin at the state that was loaded last, else at the epoch's first batch.

        An iteration that is still open ends here: its next batch would be another's.
        """
        if (running := self._iteration()) is not None:
            running.close()
        state, self._resume = self._resume, None
        self._step, self._blocks_now = (state["step"], state["blocks"]) if state else (0, self._blocks)
        batches = self._iterate()
        self._iteration = weakref.ref(batches)
        return batches

    def _iterate(self) -> Iterator[Batch]:
        while True:
            batches = self._tier.batches(self._plan(self.epoch, self._blocks_now, range(self._step, len(self))))
            try:
                while True:
                    started = time.perf_counter()
                    batch = next(batches, None)
                    self.wait_s += time.perf_counter() - started
                    if batch is None:
                        break
                    if self.augment is not None:
                        batch = self.augment.apply(batch, self.epoch, self.seed)
                    elif self.pixels == "ycc420":
                        batch = Batch(from_ycc420(batch.images, batch.chroma), batch.labels, batch.ids)
                    # Advanced before the batch goes out: a state saved while it is in use goes on behind it.
                    self._step += 1
                    yield batch
            finally:
                batches.close()
            self.epoch, self._step, self._blocks_now = self.epoch + 1, 0, self._blocks
            if not self.infinite:
                return

    # ------------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict:
        """Where the loader is: plain numbers. Taken while a batch is in use, it goes on with the next one.

        It holds for any number of ranks, any device, and for any tier but this: the stream's order is one of blocks,
        which the other tiers can go on with; the stream cannot go on with theirs in the middle of an epoch.
        """
        step, blocks = self._step, self._blocks_now
        if self._resume:  # loaded, and not yet iterated
            step, blocks = self._resume["step"], self._resume["blocks"]
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "step": step,
            "batch_size": self.batch_size,
            "num_samples": self.num_samples,
            "blocks": list(blocks) if blocks else None,
        }

    def load_state_dict(self, state: dict) -> None:
        """Have the next iteration go on from a state, in the middle of an epoch if need be.

        Raises Error where this loader would give other batches than the one that was saved.
        """
        try:
            epoch, step, seed = int(state["epoch"]), int(state["step"]), int(state["seed"])
            blocks = state.get("blocks")
            blocks = tuple(int(b) for b in blocks) if blocks else None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Error(f"this is no state of a loader: {state!r:.100}") from None
        if seed != self.seed:
            raise Error(f"the saved loader state has seed {seed}, this loader {self.seed}")
        if step:
            for name in ("batch_size", "num_samples"):
                if name in state and state[name] != getattr(self, name):
                    raise Error(
                        f"the loader state was saved in the middle of an epoch with {name} {state[name]}; "
                        f"this loader has {getattr(self, name)}"
                    )
            if self.tier == "stream" and self.shuffle and blocks is None:
                raise Error(
                    "the loader state was saved in the middle of an epoch whose order does not go by blocks, which "
                    "the stream tier cannot go on with: load with tier='pinned' or 'resident', or resume at an epoch's "
                    "start"
                )
        self.epoch = epoch
        keeps = step and (self.shuffle or self.tier != "stream")  # without a shuffle blocks make no difference
        self._resume = {"step": step, "blocks": blocks if keeps else self._blocks}


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Error(f"there is no device {name!r}; take cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise Error(f"device {name!r}: batches go to cpu or cuda; move them on from there")
    if device.type == "cpu":
        return device
    if not (device.index or 0) < torch.cuda.device_count():
        raise Error(f"device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices")
    # With its number: another thread has a current device of its own.
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _choose_tier(rgb_bytes: int, resident_bytes: int, device: torch.device, forced: str | None) -> tuple[str, str]:
    """(tier, why), from the bytes of all pixels as RGB and as the resident tier would hold them."""
    host, share = free_memory(), tiers.SHARE
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    else:
        free, where = host, "memory"
    said = f"{resident_bytes / 1e9:.2f} GB of pixels, {free / 1e9:.1f} GB free in {where}"
    if forced:
        return forced, f"{forced}, as asked: {said}"
    if resident_bytes <= share * free:
        return "resident", f"resident: {said}"
    said += f", of which {share:.0%} may be used"
    if device.type == "cuda" and rgb_bytes <= share * host:
        return "pinned", f"pinned: {said}; {host / 1e9:.1f} GB free in memory"
    return "stream", f"stream: {said}"
