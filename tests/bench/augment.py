"""Augment batches: ours beside torchvision per image, grid_sample on whole batches and, if installed, kornia.

Usage: python tests/bench/augment.py [--device cuda] [--augment NAME]...

Random resized crop, flip and normalise of uint8 (N, res, res, 3) batches in memory to bf16 (N, 3, res, res); further
sets of operations of ours without a peer. torchvision works image by image on --threads processes (its v2 classes, and
its functions with boxes drawn beforehand), everything else on as many threads; torchvision_batch draws once a batch.
Ours is compiled (`ours`) and not (`ours eager`). Contestants take turns, so that a machine that slows down slows all of
them: a rate is the median of the rounds, a ratio the median of each round's ratio; `cpu_ratio` compares the CPU time
that each spent, which other work on the machine hardly touches. `copy_share` is the time of a plain copy that reads and
writes as many bytes (half of uint8 in plus bf16 out, each way) over ours. Peers that are missing are left out and said:
run it in the environment that has them.
Prints one JSON row a set.
"""

import itertools
import multiprocessing
import time

import harness
import numpy as np
import torch
import torch.nn.functional as F

from mlpdata.augment import draws, geometry
from mlpdata.augment.augment import Augment
from mlpdata.augment.batch import Batch
from mlpdata.augment.chroma import to_ycc420
from mlpdata.augment.draws import Draws

ENOUGH_S = 0.005  # between two waits for the device
MEAN, STD = (0.48, 0.45, 0.41), (0.23, 0.22, 0.23)


def per_image(transform, images, threads):
    """A step that runs `transform` on each image of half a batch a process; results land in shared memory."""
    images = images.cpu().permute(0, 3, 1, 2).contiguous().share_memory_()
    out = torch.empty(images.shape, dtype=torch.bfloat16).share_memory_()

    def work(part, tasks, done):
        torch.set_num_threads(1)
        while tasks.get():
            started = time.process_time()
            for i in range(*part):
                out[i] = transform(i, images[i])
            done.put(time.process_time() - started)

    context = multiprocessing.get_context("fork")
    ends = [len(images) * k // threads for k in range(threads + 1)]
    queues = [(context.Queue(), context.Queue()) for _ in range(threads)]
    for part, pair in zip(itertools.pairwise(ends), queues, strict=True):
        context.Process(target=work, args=(part, *pair), daemon=True).start()

    def step():
        for tasks, _ in queues:
            tasks.put(True)
        return sum(done.get() for _, done in queues)

    return step


def torchvision_v2(images, res, threads):
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(res, antialias=False), v2.RandomHorizontalFlip(),
                            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])  # fmt: skip
    return per_image(lambda i, image: transform(image), images, threads)


def torchvision_batch(images, res, threads):
    """The whole batch at once on its device, as it is often done: one box and one flip for all its images."""
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(res, antialias=False), v2.RandomHorizontalFlip(),
                            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])  # fmt: skip
    return lambda: transform(images.permute(0, 3, 1, 2)).to(torch.bfloat16)


def torchvision_functional(images, res, threads):
    import torchvision.transforms.functional as tv

    boxes, flips = drawn(images, res)
    boxes, flips = boxes.tolist(), flips.tolist()

    def transform(i, image):
        image = tv.resized_crop(image, *boxes[i], [res, res], antialias=False)
        image = tv.hflip(image) if flips[i] else image
        return tv.normalize(image.float().div_(255), MEAN, STD, inplace=True)

    return per_image(transform, images, threads)


def drawn(images, res):
    ids = torch.arange(len(images))
    table = draws.ratio_table(3 / 4, 4 / 3, ids.device)
    boxes = geometry.crop_boxes(Draws.of(ids, 0, 0, draws.CROP), (res, res), (0.08, 1.0), table, (3 / 4, 4 / 3))
    return boxes, Draws.of(ids, 0, 0, (draws.FLIP,)).uniform(draws.FLIP) < 0.5


def grid_sample(images, res, threads):
    """The usual batched way: float images, an affine grid, normalise."""
    boxes, flips = (t.to(images.device) for t in drawn(images, res))
    top, left, high, wide = boxes.float().unbind(1)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = wide / res * (1 - 2 * flips.float()), high / res
    theta[:, 0, 2], theta[:, 1, 2] = (2 * left + wide) / res - 1, (2 * top + high) / res - 1
    mean, std = (torch.tensor(x, device=images.device).view(1, 3, 1, 1) * 255 for x in (MEAN, STD))

    def step():
        grid = F.affine_grid(theta, (len(images), 3, res, res), align_corners=False)
        x = F.grid_sample(images.permute(0, 3, 1, 2).float(), grid, padding_mode="border", align_corners=False)
        return x.sub_(mean).div_(std).to(torch.bfloat16)

    return step


def kornia(images, res, threads):
    import kornia.augmentation as K

    transform = K.AugmentationSequential(
        K.RandomResizedCrop((res, res), scale=(0.08, 1.0), cropping_mode="resample"), K.RandomHorizontalFlip(),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)), data_keys=["input"],
    )  # fmt: skip
    return lambda: transform(images.permute(0, 3, 1, 2).float() / 255).to(torch.bfloat16)


def ours(images, options, compiled, ycc=False):
    augment = Augment(mean=MEAN, std=STD, dtype="bfloat16", compile=compiled, **options)
    ids = torch.arange(len(images), device=images.device)
    images, chroma = to_ycc420(images) if ycc else (images, None)
    batch, epoch = Batch(images, ids, ids, chroma=chroma), iter(range(1 << 30))
    return lambda: augment.apply(batch, next(epoch), 0)


def copy(num_bytes, device):
    source, target = (torch.ones(num_bytes // 2, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def race(contestants, args):
    """{name: (seconds, CPU seconds) of one batch, a value a round}."""
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None

    def warm_up(step):  # compilation, memory
        for _ in range(3):
            step()
        wait()

    def turn(step):
        n, repeat, used, start = 0, 1, -time.process_time(), time.perf_counter()
        while not n or time.perf_counter() - start < args.seconds / args.rounds:
            for _ in range(repeat):
                elsewhere = step()
                used += elsewhere if isinstance(elsewhere, float) else 0
            wait()
            n += repeat
            if time.perf_counter() - start < n * ENOUGH_S:  # waiting for the device is a part of so short a time
                repeat *= 2
        return (time.perf_counter() - start) / n, (used + time.process_time()) / n

    results = harness.take_turns(harness.started(contestants, warm_up), turn, args.rounds)
    return {name: np.array(turns).T for name, turns in results.items()}


def row(name, times, num_bytes, args):
    seconds, cpu = ({n: t[k] for n, t in times.items()} for k in (0, 1))
    rates = {n: args.batch / s for n, s in seconds.items() if n != "copy"}
    pairs = [(n, peer) for n in rates for peer in rates if n.startswith("ours") and not peer.startswith("ours")]
    out = {
        "bench": "augment", "set": name, "batch": args.batch, "res": args.res, "device": args.device,
        "rounds": args.rounds, "threads": args.threads, **harness.machine("torch", "torchvision", "kornia"),
        "images_per_s": {
            n: harness.spread(r) | {"cpu_us_per_image": round(float(np.median(cpu[n])) / args.batch * 1e6, 1)}
            for n, r in rates.items()
        },
        "ratio": {f"{n} / {peer}": harness.median_ratio(rates[n], rates[peer], 2) for n, peer in pairs},
        "megabytes_a_batch": round(num_bytes / 1e6, 1),
        "copy_gb_per_s": round(float(np.median(num_bytes / seconds["copy"])) / 1e9, 1),
        "copy_share": {n: harness.median_ratio(seconds["copy"], seconds[n]) for n in rates if "ours" in n},
    }  # fmt: skip
    if args.device == "cuda":
        out["gpu"] = torch.cuda.get_device_name()
    else:
        out["cpu_ratio"] = {f"{n} / {peer}": harness.median_ratio(cpu[peer], cpu[n], 2) for n, peer in pairs}
    return out


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--res", type=int, default=64)
    parser.add_argument("--threads", type=int, default=harness.CORES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4, help="for each contestant")
    parser.add_argument("--augment", nargs="+", default=["crop+flip"], choices=harness.AUGMENTATIONS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = torch.randint(0, 256, (args.batch, args.res, args.res, 3), dtype=torch.uint8)
    peers = {
        f.__name__: lambda f=f: f(images, args.res, args.threads) for f in (torchvision_v2, torchvision_functional)
    }
    on_device = images.to(args.device)
    peers |= {
        f.__name__: lambda f=f: f(on_device, args.res, args.threads) for f in (torchvision_batch, grid_sample, kornia)
    }
    num_bytes = images.numel() * 3
    for name in args.augment:
        options = harness.AUGMENTATIONS[name]
        contestants = peers if name == "crop+flip" else {}  # the processes are forked before any thread pool starts
        contestants |= {
            "copy": lambda: copy(num_bytes, args.device),
            "ours": lambda o=options: ours(on_device, o, True),
            "ours eager": lambda o=options: ours(on_device, o, False),
            "ours ycc420": lambda o=options: ours(on_device, o, True, ycc=True),
        }
        harness.report(row(name, race(contestants, args), num_bytes, args))


if __name__ == "__main__":
    main()
