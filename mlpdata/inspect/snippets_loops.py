"""Code that trains on `mlpdata.load` in other people's loops: Lightning, accelerate, torchdata, JAX, tf.data, Keras.

Each snippet goes through one epoch and prints the shapes of its first batch.
"""

from __future__ import annotations

from pathlib import Path

from mlpdata.shards.manifest import Manifest

BATCH_SIZE = 256


def load_arguments(root: Path, manifest: Manifest, split: str, batch_size: str = str(BATCH_SIZE)) -> str:
    """The arguments of mlpdata.load for a split, as code."""
    res = f", res={manifest.res}" if manifest.resize == "longest" else ""
    return f"{str(root)!r}, {split!r}, batch_size={batch_size}, shuffle={split == 'train'}{res}"


def lightning(root: Path, manifest: Manifest, split: str) -> str:
    """Lightning's Trainer."""
    arguments = load_arguments(root, manifest, split, f"{BATCH_SIZE} * self.trainer.world_size")
    return f"""
import lightning
import torch
import mlpdata


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        linear = torch.nn.Linear({_pixels(manifest)}, {manifest.num_classes})
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), linear)

    def training_step(self, batch, step):
        images, labels = batch  # uint8 (N, {manifest.res}, {manifest.res}, 3), int64 (N,), on the model's device
        if step == 0:
            print(images.shape, images.dtype, labels.shape, labels.dtype)
        return torch.nn.functional.cross_entropy(self.layers(images / 255), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):  # Lightning shards torch DataLoaders alone: this one takes its share by itself
        ranks = {{"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}}
        return mlpdata.load({arguments}, **ranks)


trainer = lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
trainer.fit(Classifier())
"""


def accelerate(root: Path, manifest: Manifest, split: str) -> str:
    """Hugging Face's accelerate."""
    arguments = load_arguments(root, manifest, split, f"{BATCH_SIZE} * accelerator.num_processes")
    return f"""
import torch
from accelerate import Accelerator
import mlpdata

accelerator = Accelerator()
layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear({_pixels(manifest)}, {manifest.num_classes}))
optimizer = torch.optim.SGD(layers.parameters(), lr=0.01)
layers, optimizer = accelerator.prepare(layers, optimizer)
# prepare() shards torch DataLoaders alone and leaves this one as it is, so it takes its share by itself.
ranks = {{"rank": accelerator.process_index, "world_size": accelerator.num_processes}}
loader = mlpdata.load({arguments}, device=accelerator.device, **ranks)
for step, (images, labels) in enumerate(loader):  # uint8 (N, {manifest.res}, {manifest.res}, 3), int64 (N,)
    if step == 0:
        print(images.shape, images.dtype, labels.shape, labels.dtype)
    accelerator.backward(torch.nn.functional.cross_entropy(layers(images / 255), labels))
    optimizer.step()
    optimizer.zero_grad()
"""


def torchdata(root: Path, manifest: Manifest, split: str) -> str:
    """torchdata's StatefulDataLoader."""
    return f"""
from torchdata.stateful_dataloader import StatefulDataLoader
import mlpdata

dataset = mlpdata.load({load_arguments(root, manifest, split)}).dataset()


def loader():
    return StatefulDataLoader(dataset, batch_size={BATCH_SIZE}, shuffle={split == "train"}, num_workers=0)


batches = loader()
for images, labels in batches:  # uint8 (N, 3, {manifest.res}, {manifest.res}), int64 (N,)
    print(images.shape, images.dtype, labels.shape, labels.dtype)
    state = batches.state_dict()  # another process goes on behind this batch
    break
rest = loader()
rest.load_state_dict(state)
print(len(labels) + sum(len(labels) for _, labels in rest), "samples in two parts of an epoch")
"""


def jax(root: Path, manifest: Manifest, split: str) -> str:
    """JAX arrays on its device."""
    return f"""
import jax
import mlpdata

loader = mlpdata.load({load_arguments(root, manifest, split)})
for step, (images, labels) in enumerate(loader):
    images, labels = jax.device_put((images.numpy(), labels.numpy()))
    if step == 0:  # uint8 (N, {manifest.res}, {manifest.res}, 3), int32 (N,)
        print(images.shape, images.dtype, labels.shape, labels.dtype)
"""


def tensorflow(root: Path, manifest: Manifest, split: str) -> str:
    """A tf.data.Dataset."""
    return f"""
import tensorflow as tf
import mlpdata

loader = mlpdata.load({load_arguments(root, manifest, split)})


def batches():
    for images, labels in loader:
        yield images.numpy(), labels.numpy()


shapes = tf.TensorSpec((None, {manifest.res}, {manifest.res}, 3), tf.uint8), tf.TensorSpec((None,), tf.int64)
dataset = tf.data.Dataset.from_generator(batches, output_signature=shapes)
dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(loader))).prefetch(2)
for step, (images, labels) in enumerate(dataset):
    if step == 0:
        print(images.shape, images.dtype.name, labels.shape, labels.dtype.name)
"""


def keras(root: Path, manifest: Manifest, split: str) -> str:
    """Keras' fit, on any of its backends."""
    return f"""
import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # or "jax", or "tensorflow"
import keras
import mlpdata

loader = mlpdata.load({load_arguments(root, manifest, split)}, infinite=True)
model = keras.Sequential([
    keras.Input(({manifest.res}, {manifest.res}, 3)),
    keras.layers.Rescaling(1 / 255),
    keras.layers.Flatten(),
    keras.layers.Dense({manifest.num_classes}),
])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def batches():
    for step, (images, labels) in enumerate(loader):  # one epoch after another
        if step == 0:
            print(images.shape, images.dtype, labels.shape, labels.dtype)
        yield images.numpy(), labels.numpy()


model.fit(batches(), steps_per_epoch=len(loader), epochs=1, shuffle=False, verbose=0)
"""


def _pixels(manifest: Manifest) -> int:
    return 3 * manifest.res**2
