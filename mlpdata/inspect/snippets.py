"""Code that reads a shard directory with other people's libraries; what is printed runs as it stands.

Each snippet prints the shape of its first batch, so that the user sees that it works. The interop tests run all of them
with the real libraries. Those that train on `mlpdata.load` are in snippets_loops.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from mlpdata.errors import Error
from mlpdata.inspect import snippets_loops
from mlpdata.inspect.snippets_loops import BATCH_SIZE, load_arguments
from mlpdata.shards import beton
from mlpdata.shards.manifest import Manifest, beton_path, index_path
from mlpdata.shards.tar import EXTENSIONS
from mlpdata.splits import on_hub
from mlpdata.system.files import resolved

# What to install for code that needs no mlpdata: the library, and packages that the code uses and it does not bring.
PACKAGES = {
    "ffcv": "ffcv",
    "webdataset": "webdataset torch pillow",
    "datasets": "datasets pillow",
    "timm": "timm webdataset",
    "dali": "nvidia-dali-cuda120 torch pyarrow",
    "numpy": "numpy",
    "litdata": "litdata",
    "streaming": "mosaicml-streaming",
}
# Characters of a path that a library, or one that it uses, takes for a pattern.
SPECIAL = {"datasets": ("*", "?", "[", "$", "::"), "webdataset": ("?", "#", ";", "\n", "\r", "\t")}


def snippet(root: Path, library: str, split: str = "train", manifest: Manifest | None = None) -> str:
    """Python code for one of LIBRARIES. Raises Error where the directory lacks what that library reads.

    manifest: of a directory that is not there yet.
    """
    manifest = manifest or Manifest.load(root)
    split = manifest.split(split)
    root = resolved(root)
    info = manifest.splits[split]
    if not info.num_samples:
        raise Error(f"{root} has no samples of split {split!r}")
    if library == "timm" and "tar" in split:
        raise Error(f"timm takes the split {split!r} for the name of a file, because it contains `tar`; use webdataset")
    if library == "ffcv" and not info.beton:
        raise Error(f"{root} has no beton of split {split!r}, which ffcv reads; `mlpdata export --to beton` makes one")
    if library in ("webdataset", "datasets", "timm", "dali") and not info.tars:
        raise Error(f"{root} has no tars of split {split!r} for {library}: `mlpdata export --to tar` makes some")
    if library in ("litdata", "streaming") and manifest.resize == "longest":
        raise Error(f"{root} has images of several sizes, of which {library} makes no batches; take torch")
    code = SNIPPETS[library](root, manifest, split).strip()
    return code if "import mlpdata" in code else f"# pip install {PACKAGES[library]}\n{code}"


def _ffcv(root: Path, manifest: Manifest, split: str) -> str:
    decoder, arguments = "SimpleRGBImageDecoder", ""
    if manifest.resize == "longest":
        decoder, arguments = "CenterCropRGBImageDecoder", f"({manifest.res}, {manifest.res}), ratio=1"
    return f"""
from ffcv.fields.decoders import {decoder}, IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

loader = Loader(
    {str(beton_path(root, split))!r},
    batch_size={BATCH_SIZE},
    num_workers=1,  # as many as there are cores at most
    order=OrderOption.{"RANDOM" if split == "train" else "SEQUENTIAL"},
    drop_last=False,
    pipelines={{
        "image": [{decoder}({arguments}), ToTensor(), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze()],
    }},
)
# To the end of the epoch: a program that ends while ffcv's thread still reads may crash.
for step, (images, labels) in enumerate(loader):  # uint8 (N, 3, {manifest.res}, {manifest.res}), int64 (N,)
    if step == 0:
        print(images.shape, images.dtype, labels.shape, labels.dtype)
"""


def _webdataset(root: Path, manifest: Manifest, split: str) -> str:
    info, key, link = manifest.splits[split], EXTENSIONS[manifest.tar_codec or "jpg"], _link(root, "webdataset")
    start = f"link + {f'/{split}'!r}" if link else repr(str(root / split))
    resized = ""
    if manifest.resize == "longest":
        resized = f"\n    .map_tuple(lambda image: image.resize(({manifest.res}, {manifest.res})), int)"
    return f'''
import numpy as np
import webdataset as wds
{link}
tars = [{start} + f"-{{i:06d}}.tar" for i in range({len(info.tars)})]
dataset = (
    wds.WebDataset(tars, shardshuffle={len(info.tars) if split == "train" else False}, empty_check=False)
    .shuffle({1000 if split == "train" else 0})
    .decode("pil")
    .to_tuple("{key}", "cls"){resized}
    .map_tuple(np.asarray, int)
    .batched({BATCH_SIZE})
)
loader = wds.WebLoader(dataset, batch_size=None, num_workers=0)
for images, labels in loader:  # uint8 (N, {manifest.res}, {manifest.res}, 3), int64 (N,)
    print(images.shape, images.dtype, labels.shape, labels.dtype)
    break
'''


def _datasets(root: Path, manifest: Manifest, split: str) -> str:
    key, name, link = EXTENSIONS[manifest.tar_codec or "jpg"], on_hub(split), _link(root, "datasets")
    call = f"load_dataset({str(root)!r}, split={name!r})  # streaming=True reads without a copy in the cache"
    if link:
        files = f"{{{name!r}: link + {f'/{split}-*.tar'!r}}}"
        call = f'load_dataset("webdataset", data_files={files}, split={name!r})'
    return f'''
from datasets import load_dataset
{link}
dataset = {call}
dataset = dataset.rename_columns({{"{key}": "image", "cls": "label"}})
print(len(dataset), dataset.features)
print(dataset[0]["image"].size, dataset[0]["label"])  # a PIL image and its label
'''


def _link(root: Path, library: str) -> str:
    """Code that makes `link`, another path of the directory, where the library takes its own for a pattern; else ""."""
    if not any(mark in str(root) for mark in SPECIAL[library]):
        return ""
    return f"""
import os
import tempfile

link = os.path.join(tempfile.mkdtemp(), "shards")  # {library} takes something in the path itself for a pattern
os.symlink({str(root)!r}, link)
"""


def _timm(root: Path, manifest: Manifest, split: str) -> str:
    training = split == "train"
    batch_size = min(BATCH_SIZE, manifest.splits[split].num_samples)  # in training timm drops what fills no batch
    key = ', input_key="jpg;ppm"' if manifest.tar_codec == "raw" else ""
    return f"""
from timm.data import create_dataset, create_loader

dataset = create_dataset(
    "wds/", root={str(root)!r}, split={split!r}, is_training={training}, batch_size={batch_size}{key}
)
loader = create_loader(
    dataset,
    input_size=(3, {manifest.res}, {manifest.res}),
    batch_size={batch_size},
    is_training={training},
    mean={tuple(manifest.mean)},
    std={tuple(manifest.std)},
    crop_pct=1.0,
    num_workers=1,
    use_prefetcher=False,
)
for images, labels in loader:  # float32 (N, 3, {manifest.res}, {manifest.res}), normalised, and int64 (N,)
    print(images.shape, images.dtype, labels.shape, labels.dtype)
    break
"""


def _torch(root: Path, manifest: Manifest, split: str) -> str:
    return f"""
import mlpdata

# device="cuda" puts the batches there
loader = mlpdata.load({load_arguments(root, manifest, split)})
for batch in loader:  # uint8 (N, {manifest.res}, {manifest.res}, 3), int64 (N,), on the device
    print(batch.images.shape, batch.images.dtype, batch.labels.shape, batch.labels.dtype)
    break
dataset = loader.dataset()  # the same samples for a torch DataLoader of your own: (uint8 (3, H, W), label)
print(len(dataset), dataset[0][0].shape, dataset[0][1])
"""


def _numpy(root: Path, manifest: Manifest, split: str) -> str:
    info = manifest.splits[split]
    if manifest.beton_codec != "raw" or manifest.resize == "longest":
        res = f", res={manifest.res}" if manifest.resize == "longest" else ""
        return f"""
import mlpdata

images, labels = mlpdata.load({str(root)!r}, {split!r}, batch_size={BATCH_SIZE}{res}).arrays()
print(images.shape, images.dtype, labels.shape, labels.dtype)  # uint8, int64
"""
    fields = ", ".join(f'("{name}", "{kind}")' for name, kind in (("mode", "u1"), ("width", "<u2"), ("height", "<u2")))
    return f'''
import numpy as np

path = {str(beton_path(root, split))!r}
image = np.dtype([{fields}, ("data_ptr", "<u8")])
table = np.dtype([("image", image), ("label", "<i8")], align=True)
rows = np.fromfile(path, table, {info.num_samples}, offset={beton.METADATA_START})
pixels = np.memmap(path, np.uint8, "r")
labels = rows["label"]


def read(ids):
    """Samples of any numbers: uint8 (n, {manifest.res}, {manifest.res}, 3)."""
    starts = rows["image"]["data_ptr"][ids].astype(np.int64)
    images = np.stack([pixels[at : at + {3 * manifest.res**2}] for at in starts])
    return images.reshape(-1, {manifest.res}, {manifest.res}, 3)


images = read(np.arange(min({BATCH_SIZE}, len(labels))))
print(images.shape, images.dtype, labels.shape, labels.dtype)
'''


def _dali(root: Path, manifest: Manifest, split: str) -> str:
    codec = manifest.tar_codec or "jpg"
    key, resized, width, header = EXTENSIONS[codec], "", "", "0"
    if manifest.resize == "longest":
        resized = f"\n    images = fn.resize(images, size=({manifest.res}, {manifest.res}))"
    if codec == "raw":
        width, header = ', "width", "height"', 'len(f"P6\\n{row[5]} {row[6]}\\n255\\n")'
    return f'''
import itertools
import os
import tempfile
import pyarrow.parquet as pq
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

root = {str(root)!r}
folder = tempfile.mkdtemp()


def rows():
    """Where each sample lies, from the index of the shards: DALI then need not read the tars to find out."""
    columns = ["file", "key", "label", "offset", "bytes"{width}]
    for batch in pq.ParquetFile(os.path.join(root, {index_path(Path(), split).name!r})).iter_batches(columns=columns):
        yield from zip(*(batch.column(name).to_pylist() for name in columns))


tars, indices = [], []
for tar, samples in itertools.groupby(rows(), lambda row: row[0]):
    lines = []
    for row in samples:
        header = {header}  # what stands before the pixels
        start, size = row[3] - header, row[4] + header
        name = 512 if len(row[1].encode()) <= 96 else 1536  # bytes in which the tar names the label
        label = start + -(-size // 512) * 512 + name
        lines.append(f"{key} {{start}} {{size}} image cls {{label}} {{len(str(row[2]))}} label\\n")
    tars.append(os.path.join(root, tar))
    indices.append(os.path.join(folder, tar + ".idx"))
    with open(indices[-1], "w") as f:
        f.writelines([f"v1.2 {{len(lines)}}\\n", *lines])


# device_id=0, and device="mixed" for the decoder, decode on a GPU.
@pipeline_def(batch_size={BATCH_SIZE}, num_threads=2, device_id=None)
def shards():
    images, labels = fn.readers.webdataset(
        paths=tars, index_paths=indices, ext=["{key}", "cls"], random_shuffle={split == "train"}, name="reader",
        pad_last_batch=True,  # else the next epoch lacks what filled the last batch
    )
    images = fn.decoders.image(images, output_type=types.RGB){resized}
    return images, fn.pad(labels, fill_value=ord(" "))


loader = DALIGenericIterator(
    [shards()], ["images", "labels"], reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL
)
for step, (batch,) in enumerate(loader):
    images = batch["images"]  # uint8 (N, {manifest.res}, {manifest.res}, 3)
    labels = torch.tensor([int(bytes(text)) for text in batch["labels"].numpy()])
    if step == 0:
        print(images.shape, images.dtype, labels.shape, labels.dtype)
'''


def _litdata(root: Path, manifest: Manifest, split: str) -> str:
    return f"""
# litdata reads chunks of its own format. Once, before this:
#   mlpdata export {_shell(root)} --to litdata -o {_shell(exported(root, "litdata"))}
from litdata import StreamingDataLoader, StreamingDataset

dataset = StreamingDataset({str(exported(root, "litdata") / split)!r}, shuffle={split == "train"})
loader = StreamingDataLoader(dataset, batch_size={BATCH_SIZE}, num_workers=0)
for step, batch in enumerate(loader):
    if step == 0:  # uint8 (N, 3, {manifest.res}, {manifest.res}), int64 (N,)
        print(batch["image"].shape, batch["image"].dtype, batch["label"].shape, batch["label"].dtype)
"""


def _streaming(root: Path, manifest: Manifest, split: str) -> str:
    return f"""
# MosaicML's streaming reads shards of its own format, MDS. Once, before this:
#   mlpdata export {_shell(root)} --to mds -o {_shell(exported(root, "mds"))}
import numpy as np
import torch
from streaming import StreamingDataset


class Shards(StreamingDataset):
    def __getitem__(self, i):
        sample = super().__getitem__(i)  # a PIL image and its label
        return torch.from_numpy(np.array(sample["image"])), sample["label"]


dataset = Shards(
    local={str(exported(root, "mds"))!r}, split={split!r}, shuffle={split == "train"}, batch_size={BATCH_SIZE}
)
for step, (images, labels) in enumerate(torch.utils.data.DataLoader(dataset, batch_size={BATCH_SIZE})):
    if step == 0:  # uint8 (N, {manifest.res}, {manifest.res}, 3), int64 (N,)
        print(images.shape, images.dtype, labels.shape, labels.dtype)
"""


def exported(root: Path, to: str) -> Path:
    """Where a snippet has the directory exported to: beside it."""
    return root.with_name(f"{root.name}-{to}")


def _shell(path: Path) -> str:
    """A path as one word of a shell, on one line of a comment."""
    return shlex.quote(str(path)) if str(path).isprintable() else f"$'{str(path).encode('unicode_escape').decode()}'"


SNIPPETS: dict[str, Callable[[Path, Manifest, str], str]] = {
    "ffcv": _ffcv,
    "webdataset": _webdataset,
    "datasets": _datasets,
    "timm": _timm,
    "torch": _torch,
    "numpy": _numpy,
    "dali": _dali,
    "litdata": _litdata,
    "streaming": _streaming,
    **{
        name: getattr(snippets_loops, name)
        for name in ("lightning", "accelerate", "torchdata", "jax", "tensorflow", "keras")
    },
}
