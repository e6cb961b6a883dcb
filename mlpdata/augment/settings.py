"""What augmentation does, as plain numbers: the only place of its fields, defaults and checks. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a batch, in this order. `Augment` does it; a recipe's `augment` section is this class.

    res:        output pixels a side; None keeps the stored size.
    crop_scale: share of the area that a random crop takes, (low, high); None for no crop.
    crop_ratio: width over height of a crop, (low, high), drawn log-uniformly.
    pad:        black pixels put around the image, of which a window of the image's size is then taken at random.
                Excludes crop_scale.
    flip:       mirror every image with probability 1/2.
    brightness, contrast, saturation: a factor from max(0, 1 - x) to 1 + x, as torchvision's ColorJitter, but always in
                this order.
    cutout:     side of a square, in output pixels, around a random pixel; it is set to the mean (0 after normalising).
    erase:      probability of torchvision's RandomErasing: a box of 2 to 33% of the area, set to the mean.
    mixup:      alpha of Beta(alpha, alpha); 0 for none. Each sample has its own weight, where the paper draws one per
                batch: the same distribution, and independent of how batches are cut. The partner is the neighbour in
                the batch.
    cutmix:     alpha of the share of the image that stays; the rest is a box out of the neighbour. With mixup too, each
                pair of neighbours takes either, at even odds.
    mean, std:  per channel, on the scale of 0 to 1; None leaves values from 0 to 1 (in a recipe: takes the data set's).
    compile:    True and False force or forbid compiled code (a Triton kernel on a GPU, torch.compile on the CPU), with
                the same results. None compiles at once for a GPU, on the CPU after half a minute of work. If compiling
                fails, a warning says so once.

    Raises ValueError for values that make no sense.

    >>> Augmentation(pad=4)
    Traceback (most recent call last):
    ValueError: pad and crop_scale exclude each other: set one of them to 0 or null
    """

    res: int | None = None
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 0
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    cutout: int = 0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    compile: bool | None = None

    def __post_init__(self):
        for name in ("crop_scale", "crop_ratio", "mean", "std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))  # lists do not hash
        if self.res is not None and self.res < 1:
            raise ValueError(f"res must be positive, not {self.res}")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be (low, high) with 0 < low <= high <= 1, not {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be (low, high) with 0 < low <= high, not {self.crop_ratio}")
        for name in ("pad", "brightness", "contrast", "saturation", "cutout", "erase", "mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")
        if self.pad and self.crop_scale is not None:
            raise ValueError("pad and crop_scale exclude each other: set one of them to 0 or null")
        if self.erase > 1:
            raise ValueError(f"erase is a probability, not {self.erase}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std come together")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")

    def output_size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what becomes of an image of the stored size."""
        return (self.res, self.res) if self.res else stored

    @property
    def has_jitter(self) -> bool:
        return bool(self.brightness or self.contrast or self.saturation)

    def without_random(self):
        """The same output size and normalisation, and nothing random: what evaluation does.

        >>> Augmentation(res=32, mixup=0.8).without_random() == Augmentation(res=32, crop_scale=None, flip=False)
        True
        """
        off = dict.fromkeys(("pad", "brightness", "contrast", "saturation", "cutout", "erase", "mixup", "cutmix"), 0)
        return replace(self, crop_scale=None, flip=False, **off)

    def random(self) -> bool:
        """Whether a sample looks different from epoch to epoch."""
        return self != self.without_random()
