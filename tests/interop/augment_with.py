"""torchvision's per-image transforms beside ours, on our draws: prints the largest difference of each in grey levels.

Runs in the interop environment with the repository on PYTHONPATH; torchvision is unmodified. Prints one JSON object.
"""

import json

import torch
import torchvision.transforms.v2.functional as tv
from torchvision.transforms import RandomErasing, RandomResizedCrop
from torchvision.transforms.v2 import CutMix

from mlpdata.augment import draws, geometry
from mlpdata.augment.augment import Augment
from mlpdata.augment.batch import Batch
from mlpdata.augment.draws import Draws

SEED, EPOCH, N = 7, 3, 48
PLAIN = {"crop_scale": None, "flip": False}


def batch(height, width):
    """Noise, the hardest case, and smooth images in turn."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (N, height, width, 3), dtype=torch.uint8, generator=generator)
    coarse = noise[:, :: height // 3, :: width // 3].permute(0, 3, 1, 2).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).byte()
    noise[1::2] = smooth.permute(0, 2, 3, 1)[1::2]
    return Batch(noise, torch.arange(N) % 10, torch.arange(100, 100 + N))


def ours(b, **options):
    return Augment(compile=False, **options).apply(b, EPOCH, SEED).images * 255


def worst(got, b, per_image):
    """On float images, which torchvision does not round in between."""
    images = b.images.permute(0, 3, 1, 2) / 255
    expected = torch.stack([per_image(i, image) for i, image in enumerate(images)])
    return (got - 255 * expected).abs().max().item()


def worst_rounded(got, b, per_image):
    """On uint8 images, ours rounded too."""
    expected = torch.stack([per_image(i, image) for i, image in enumerate(b.images.permute(0, 3, 1, 2))])
    return (got.round() - expected.float()).abs().max().item()


def drawn(b, *purposes):
    return Draws.of(b.ids, SEED, EPOCH, purposes)


def crop(size, res, compare):
    b = batch(*size)
    table = draws.ratio_table(3 / 4, 4 / 3, b.ids.device)
    boxes = geometry.crop_boxes(drawn(b, *draws.CROP), size, (0.08, 1.0), table, (3 / 4, 4 / 3)).tolist()
    flips = drawn(b, draws.FLIP).uniform(draws.FLIP) < 0.5

    def per_image(i, image):
        image = tv.resized_crop(image, *boxes[i], [res, res], antialias=False)
        return tv.horizontal_flip(image) if flips[i] else image

    return compare(ours(b, res=res), b, per_image)


def pad():
    b = batch(32, 32)
    u = drawn(b, draws.PAD_TOP, draws.PAD_LEFT)
    top, left = u.integer(draws.PAD_TOP, 9), u.integer(draws.PAD_LEFT, 9)
    return worst(ours(b, crop_scale=None, flip=False, pad=4), b,
                 lambda i, image: tv.crop(tv.pad(image, [4]), int(top[i]), int(left[i]), 32, 32))  # fmt: skip


def jitter(name):
    b, purpose = batch(32, 32), getattr(draws, name.upper())
    factors = (0.4 + 1.2 * drawn(b, purpose).uniform(purpose)).tolist()
    return worst(ours(b, **PLAIN, **{name: 0.6}), b,
                 lambda i, image: getattr(tv, f"adjust_{name}")(image, factors[i]))  # fmt: skip


def normalize():
    b = batch(32, 32)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    got = Augment(**PLAIN, mean=mean, std=std, compile=False).apply(b, EPOCH, SEED).images
    return worst(255 * got, b, lambda i, image: tv.normalize(image, mean, std))


def erase():
    b = batch(32, 32)
    table = draws.ratio_table(0.3, 3.3, b.ids.device)
    boxes = geometry.erase_boxes(drawn(b, *draws.ERASING), (32, 32), 0.7, (0.02, 0.33), table).tolist()
    return worst(ours(b, **PLAIN, erase=0.7), b, lambda i, image: tv.erase(image, *boxes[i], torch.tensor(0)))


def mixed(name):
    """CutMix and MixUp of torchvision on a pair of images, given our box or weight."""
    b = batch(32, 32)
    out = Augment(**PLAIN, **{name: 1.0}, compile=False).apply(b, EPOCH, SEED)
    if name == "cutmix":
        table = draws.beta_table(1.0, b.ids.device)
        lam = draws.look_up(table, drawn(b, draws.CUTMIX).uniform(draws.CUTMIX))
        boxes = geometry.cutmix_boxes(drawn(b, draws.CUTMIX_TOP, draws.CUTMIX_LEFT), (32, 32), lam).tolist()

    def per_image(i, image):
        partner = b.images[i ^ 1].permute(2, 0, 1) / 255
        if name == "mixup":
            return float(out.mix_lam[i]) * image + (1 - float(out.mix_lam[i])) * partner
        top, left, high, wide = boxes[i]
        share = 1 - high * wide / 32**2
        assert abs(share - float(out.mix_lam[i])) < 1e-6
        params = {"box": (left, top, left + wide, top + high), "lam_adjusted": share}
        # torchvision pastes from the batch rolled by one: image, then partner, in a batch of two.
        return CutMix(num_classes=10).transform(torch.stack((image, partner)), {**params, "labels": None,
                      "batch_size": 2})[0]  # fmt: skip

    return worst(out.images * 255, b, per_image)


def quantiles(values):
    return torch.quantile(torch.as_tensor(values, dtype=torch.float64), torch.linspace(0.02, 0.98, 25).double())


def distributions():
    """Largest distance between quantiles of our boxes and of torchvision's own draws, as a share of the side."""
    torch.manual_seed(0)
    count, image = 8000, torch.zeros(3, 48, 64)
    ids = torch.arange(count)
    table = draws.ratio_table(3 / 4, 4 / 3, ids.device)
    mine = geometry.crop_boxes(Draws.of(ids, 0, 0, draws.CROP), (48, 64), (0.08, 1.0), table, (3 / 4, 4 / 3))
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    far = {"crop": [(quantiles(mine[:, k]) - quantiles(theirs[:, k])).abs().max().item() / 48 for k in range(4)]}
    table = draws.ratio_table(0.3, 3.3, ids.device)
    mine = geometry.erase_boxes(Draws.of(ids, 0, 0, draws.ERASING), (48, 64), 1.0, (0.02, 0.33), table)
    theirs = torch.tensor([RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(count)])
    far["erase"] = [(quantiles(mine[:, k]) - quantiles(theirs[:, k])).abs().max().item() / 48 for k in range(4)]
    return far


if __name__ == "__main__":
    levels = {
        **{
            f"crop {size[0]}x{size[1]} to {res}, {compare.__name__}": crop(size, res, compare)
            for size, res in (((32, 32), 32), ((48, 64), 20), ((32, 24), 70))
            for compare in (worst, worst_rounded)
        },
        "pad": pad(),
        **{name: jitter(name) for name in ("brightness", "contrast", "saturation")},
        "normalize": normalize(),
        "erase": erase(),
        "mixup": mixed("mixup"),
        "cutmix": mixed("cutmix"),
    }
    print(json.dumps({"levels": levels, "distributions": distributions()}))
