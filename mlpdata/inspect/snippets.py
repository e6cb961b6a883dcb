"""Code that reads a shard directory with other people's libraries; what is printed runs as it stands.

Each snippet ends by printing the shape of its first batch, so that the user sees that it works. The interop tests run
all of them with the real libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlpdata.choices import LIBRARIES
from mlpdata.errors import Error
from mlpdata.shards import beton
from mlpdata.shards.manifest import Manifest, beton_path
from mlpdata.shards.tar import EXTENSIONS
from mlpdata.splits import on_hub

BATCH_SIZE = 256
# Characters of a path that a library, or one that it uses, takes for a pattern.
SPECIAL = {"datasets": ("*", "?", "[", "$", "::"), "webdataset": ("?", "#", ";", "\n", "\r", "\t")}


def snippet(root: Path, library: str, split: str = "train") -> str:
    """Python code for one of LIBRARIES. Raises Error where the directory lacks what that library reads."""
    manifest = Manifest.load(root)
    split = manifest.split(split)
    root = Path(root).resolve()
    info = manifest.splits[split]
    if not info.num_samples:
        raise Error(f"{root} has no samples of split {split!r}")
    if library == "timm" and "tar" in split:
        raise Error(f"timm takes the split {split!r} for the name of a file, as it has `tar` in it; take webdataset")
    if library == "ffcv" and not info.beton:
        raise Error(f"{root} has no beton of split {split!r}, which is what ffcv reads; convert with --format both")
    if library in ("webdataset", "datasets", "timm") and not info.tars:
        raise Error(f"{root} has no tars of split {split!r}, which {library} reads; convert with --format both")
    return _SNIPPETS[library](root, manifest, split).strip()


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
print(len(dataset), dataset.features)
print(dataset[0]["{key}"].size, dataset[0]["cls"])  # a PIL image and its label
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
    res = f", res={manifest.res}" if manifest.resize == "longest" else ""
    return f"""
import mlpdata

# device="cuda" puts the batches there
loader = mlpdata.load({str(root)!r}, {split!r}, batch_size={BATCH_SIZE}, shuffle={split == "train"}{res})
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


_SNIPPETS: dict[str, Callable[[Path, Manifest, str], str]] = dict(
    zip(LIBRARIES, (_ffcv, _webdataset, _datasets, _timm, _torch, _numpy), strict=True)
)
