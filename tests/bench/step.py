"""Training steps on shards against the same steps on one batch that is already on the device: the saturation.

    python tests/bench/step.py RECIPE [--set key=value]... [--seconds S]

The ceiling is the second: a loader that costs nothing. Both are timed in short turns, one after the other, in one
process. Also the loader alone, with augmentation and without. Prints one JSON row.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import harness
import torch

from trainer.recipe import load_recipe
from trainer.train import Trainer
from trainer.world import device_of, precision_of


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    recipe = load_recipe(args.recipe, args.overrides)
    device = device_of(recipe.train.device)
    precision = precision_of(recipe.train.precision, device)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision=precision))
    trainer = Trainer(recipe, Path("unused"), device, quiet=True)
    measured = trainer.measure_saturation(args.seconds)
    row = {
        "bench": "step", "recipe": recipe.name, "device": str(device), "precision": precision,
        **harness.machine("torch"), "threads": torch.get_num_threads(),
        "batch_size": recipe.train.batch_size, **dataclasses.asdict(measured), "ratio": measured.saturation,
        "flop_share": trainer.flop_share(measured.shards),
    }  # fmt: skip
    harness.report({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
