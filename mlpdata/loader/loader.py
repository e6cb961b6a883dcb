"""The Loader: an iterator over the batches of an epoch, on a device, augmented. `load` is what users call it.

One index serves every format (mlpdata.shards.open), so tars have random access too. The order of an epoch follows from
(seed, epoch) alone; ranks take equal slices of each global batch, so the sequence of batches is the same for any number
of ranks.
"""

from __future__ import annotations

import inspect
import os
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
from mlpdata.loader import state
from mlpdata.loader.checksums import check_files
from mlpdata.loader.dataset import TorchDataset
from mlpdata.loader.options import LoadOptions, check_flag, merge, shown, whole
from mlpdata.loader.order import EpochOrder, EpochSteps, warn_of_others
from mlpdata.loader.reader import Reader
from mlpdata.loader.resident import Resident, load_pixels, mapped_pixels
from mlpdata.loader.subset import ids_of, select
from mlpdata.loader.tiers import open_tier
from mlpdata.shards import streamed
from mlpdata.shards.classes import distinct_names, read_classes
from mlpdata.shards.open import open_split
from mlpdata.system.format import plural
from mlpdata.system.threads import WaitClock, cores


class Loader:
    """Open a split of a shard directory, a `.beton` file or WebDataset tars. `mlpdata.load(...)` is the same call.

    Iterating over it gives the Batches of one epoch; `len` is their number. Each iteration takes the next epoch, even
    if the one before was not finished, unless a state was just loaded. Several iterations at once do not disturb each
    other; `epoch` and `state_dict` are about the one that began last.

    root:        a shard directory, also as hf:OWNER/NAME or a URL: a verified copy of that is made in the cache, or it
                 is streamed (see LoadOptions.tier). Or a `.beton` file, written by mlpdata or by ffcv; or a WebDataset
                 tar, a pattern of tars such as `train-*.tar` and `train-{000..012}.tar`, a list of tars, or a directory
                 that holds nothing but tars.
    split:       name of the split; `val`, `test` and the Hub's `validation` stand for each other. Ignored for single
                 files.
    batch_size:  samples per global batch, over all ranks.
    device:      where batches are put: "cpu", "cuda", "cuda:1", ...
    format:      "beton" or "tar"; None takes the beton if there is one.
    augment:     mlpdata.Augment, applied on the device; None gives the stored pixels, uint8 (N, H, W, 3).
    shuffle:     True: each epoch has a new order, which depends only on (seed, epoch). False: the order of `subset`, or
                 else of the split.
    seed:        of orders, augmentation and random subsets: 0 to 2**63 - 1.
    drop_last:   leave out an incomplete last batch. False: the ranks share it as evenly as possible; if it has fewer
                 samples than there are ranks, some ranks get an empty batch. Every rank sees `len` batches.
    infinite:    iterate without end, epoch after epoch; `len` is still the number of batches of one epoch.
    subset:      load only some samples: a count or a share (float) of them, drawn at random by the seed; or a mask of
                 booleans, one for each sample of the split; or a slice; or a list or array of ids, whose order and
                 repetitions are kept. A sample that occurs twice in an epoch is augmented in the same way both times.
                 Together with `classes`: of these samples, those with one of these labels.
    options:     the less common options, see LoadOptions. Each is also a keyword: load(root, tier="stream").

    labels: int64 (num_samples,), read-only, of the samples in their own order; below num_classes. shape: (H, W, 3) of
    an image. tier, tier_reason, pixels: where the pixels are, why, and in which form. wait_s: seconds that the consumer
    has waited for pixels so far: for files, decoding, gather and copy on the host, but not for the device.

    Raises mlpdata.Error for shards that are unfinished, damaged or lack the split or format, and for wrong options.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
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
        self.batch_size, self.seed = whole("batch_size", batch_size, 1), whole("seed", seed, 0)
        self.shuffle, self.drop_last, self.infinite = bool(shuffle), bool(drop_last), bool(infinite)
        options = merge(options, more, KEYWORDS)
        self.rank, self.world_size = options.rank, options.world_size or 1
        self._is_split = options.world_size is not None
        if batch_size % self.world_size:
            raise Error(f"batch size {batch_size} is not divisible by the {self.world_size} processes")
        if augment is not None and not isinstance(augment, Augment):
            raise Error(f"augment must be an mlpdata.Augment, not {shown(augment)}; dataset(transform) takes others")
        self.augment, self.wait_s = augment, 0.0
        many = [_local_path(path, options) for path in root] if isinstance(root, (list, tuple)) else []
        self.root, self.device = many[0] if many else _local_path(root, options), _device(device)
        columns = options.image_column, options.label_column
        self._source = (many or self.root, split, format, *columns, options.cache_bytes)
        self._opened = open_split(*self._source)
        self.manifest, self.split, self.index = self._opened.manifest, self._opened.split, self._opened.index
        self._selection = select(self._opened, self.root, subset, options.classes, options.relabel, self.seed)
        self.num_samples, self.num_classes = len(self._selection.labels), self._selection.num_classes
        self.labels = _read_only(self._selection.labels)
        if drop_last and not len(self):
            raise Error(
                f"split {self.split!r} has {plural(self.num_samples, 'sample')}, fewer than one batch of {batch_size}"
            )
        self._res, self.num_threads = options.res, options.num_threads or cores()
        self._reader = Reader(self.index, self.num_threads, options.res)
        self.shape = self._reader.shape
        if options.check and self.index.cache is None:  # which compares what it fetches
            check_files(self.root, self.manifest, self.split, self._reader)
        self._tier, plan, self.tier_reason = open_tier(self._reader, self._selection, self.device, options)
        self.tier, self.pixels = plan.tier, plan.pixels
        self._position = state.Position(0, 0, self._tier.blocks)  # of the iteration that began last

    # ------------------------------------------------------------------------------------------------- as a whole

    def __repr__(self) -> str:
        return (
            f"<Loader of {plural(self.num_samples, 'sample')} of {self.split!r} in "
            f"{plural(self.num_classes, 'class')}, "
            f"{plural(len(self), 'batch')} of {self.batch_size:,} x {self.shape}, {self.tier} on {self.device}>"
        )

    @cached_property
    def classes(self) -> list[str]:
        """A readable name for each label, no name twice; the numbers as text where nothing names the classes.

        Raises Error for a damaged list of classes.
        """
        if self.manifest is None:
            return [str(label) for label in range(self.num_classes)]
        names = distinct_names(read_classes(self.root, self.manifest))
        return names if self._selection.numbers is None else [names[k] for k in self._selection.numbers]

    @property
    def ids(self) -> np.ndarray:
        """int64 (num_samples,), read-only: the position of each sample in its split."""
        return _read_only(self._selection.all_ids)

    @property
    def epoch(self) -> int:
        """The current epoch, from 0. After its last batch, and before the first iteration, it is the next one."""
        return self._position.epoch

    def __len__(self) -> int:
        n = self.num_samples
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All samples in their own order: images uint8 (N, H, W, 3), labels int64 (N,), both read-only.

        Nothing is copied if the pixels are resident on the CPU, or if raw ones lie in one file at even distances (a
        tar; a beton of a single page): then they are a read-only map of the file, which must stay as it is.
        """
        if isinstance(self._tier, Resident):
            return _read_only(self._tier.rgb().cpu().numpy()), self.labels
        pixels = mapped_pixels(self._reader) if self._selection.ids is None else None
        if pixels is None:
            host = torch.device("cpu")
            pixels = load_pixels(self._reader, self._selection.all_ids, host, "rgb", self.rank > 0)[0].numpy()
        return _read_only(pixels), self.labels

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Some samples by id, as stored: (n,) integers -> uint8 (n, H, W, 3)."""
        ids = ids_of(ids, len(self.index))
        out = np.empty((len(ids), *self.shape), np.uint8)
        self._reader.read(ids, out)
        return out

    def dataset(self, transform=None) -> TorchDataset:
        """The same samples as a torch Dataset, for a DataLoader of your own: all of them, whatever the rank."""
        source, fingerprint = (self._source, self._res), (self._opened.digest, self._reader.stamps)
        return TorchDataset(*source, fingerprint, self._selection.ids, self.labels, self.classes, transform)

    # -------------------------------------------------------------------------------------------------- iterating

    def order(self, epoch: int) -> np.ndarray:
        """int64 (num_samples,): the sample ids of an epoch, in their order."""
        steps = self._steps(epoch, self._tier.blocks, range(0))
        return self._selection.ids_of_rows(steps.to_rows(steps.order.take(0, self.num_samples)))

    def _steps(self, epoch: int, blocks: tuple[int, int] | None, steps: range) -> EpochSteps:
        order, following = (
            EpochOrder(self.num_samples, self.seed, e, self.shuffle, b, self._selection.tar_edges)
            for e, b in ((epoch, blocks), (epoch + 1, self._tier.blocks))
        )
        return EpochSteps(
            order=order, following=following, row_at=self._storage_order if blocks and self.shuffle else None,
            batch_size=self.batch_size, rank=self.rank, world_size=self.world_size, range=steps,
        )  # fmt: skip

    @cached_property
    def _storage_order(self) -> np.ndarray | None:
        """Blocks are of neighbours in the files: the rows as they lie there; None if that is their own order."""
        return self._reader.storage_order(self._selection.ids)

    def set_epoch(self, epoch: int) -> None:
        """Make this epoch the next iteration. If a state in the middle of it was just loaded, it continues there."""
        epoch = whole("epoch", epoch, 0, state.MAX_EPOCH)
        if self._position.begun or self._position.epoch != epoch:
            self._position = state.Position(epoch, 0, self._tier.blocks)

    def __iter__(self) -> Iterator[Batch]:
        """The next epoch, or the rest of the one whose state was just loaded; it begins with the first batch."""
        if not self._is_split:
            warn_of_others()
        return self._iterate(self._unbegun())

    def _unbegun(self) -> state.Position:
        if self._position.begun:
            self._position = state.Position(self._position.epoch + 1, 0, self._tier.blocks)
        return self._position

    def _iterate(self, position: state.Position) -> Iterator[Batch]:
        if position.begun:  # by an iterator that was made beside this one
            position = self._unbegun()
        position.begun = True
        while True:
            epoch, clock = position.epoch, WaitClock()
            batches = self._tier.batches(self._steps(epoch, position.blocks, range(position.step, len(self))), clock)
            try:
                while True:
                    batch = next(batches, None)
                    self.wait_s += clock.pop()
                    if batch is None:
                        break
                    if self.augment is not None:
                        batch = self.augment.apply(batch, epoch, self.seed)
                    else:
                        if isinstance(self._tier, Resident):
                            batch = self._tier.gathered(batch)
                        if batch.chroma is not None:
                            batch = Batch(from_ycc420(batch.images, batch.chroma), batch.labels, batch.ids)
                    # The position moves before the batch goes out: a state saved while the batch is in use goes on
                    # with the next one, and a consumer that takes `len` batches and no more has had the epoch.
                    position.step += 1
                    if position.step == len(self):
                        position.epoch, position.step, position.begun = epoch + 1, 0, False
                        position.blocks = self._tier.blocks
                    yield batch
            finally:
                batches.close()
            if not self.infinite:
                return
            position.begun = True

    # ------------------------------------------------------------------------------------------------------ state

    @cached_property
    def _facts(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in ("seed", "shuffle", "batch_size", "drop_last")}
        return state.facts_of(self._opened.digest, self._selection, self.shape, **settings)

    def state_dict(self) -> dict[str, Any]:
        """The loader's position: numbers, strings and lists. Taken while a batch is in use, it continues with the next.

        It can be loaded with another number of ranks, another device and another tier, with one exception: in the
        middle of an epoch, the stream tier cannot continue the order of other tiers. They can continue its order.
        """
        return state.pack(self._position, self._facts)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a state at the next iteration, in the middle of an epoch if need be.

        Raises Error if it is malformed, or if this loader would give other batches than the one that was saved: other
        data, another subset, classes, image size, seed or shuffle, and in the middle of an epoch another batch size.
        """
        position = state.unpack(saved, self._facts, len(self), self._selection.tar_edges is not None)
        blocks = self._tier.blocks
        if position.step and self.shuffle and blocks and not position.blocks:
            raise Error(
                "the loader state was saved in the middle of an epoch whose order is not in blocks, and the "
                "stream tier cannot continue it: load with tier='pinned' or 'resident', or resume at an epoch's start"
            )
        if not position.step or (blocks and not self.shuffle):  # unshuffled, blocks make no difference
            position.blocks = blocks
        self._position = position


KEYWORDS = [p.name for p in inspect.signature(Loader).parameters.values() if p.kind != p.VAR_KEYWORD][2:]
load = Loader  # what users write


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _local_path(root: Any, options: LoadOptions) -> Path:
    """The absolute path of what is to be opened, of what is elsewhere too."""
    try:
        text = os.fsdecode(root)
    except TypeError:
        text = ""
    if not text or "\0" in text:
        raise Error(f"{shown(root)} is no path of a shard directory, a beton or tars")
    return streamed.local_directory(text, options.tier, options.cache_bytes).absolute()


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        raise Error(f"there is no device {shown(name)}; take cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise Error(f"device {name!r}: the loader delivers to cpu or cuda; move batches to other devices yourself")
    if device.type == "cpu":
        return device
    if not (device.index or 0) < torch.cuda.device_count():
        raise Error(f"device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices")
    # With its number: another thread has a current device of its own.
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
