"""Several processes at one model: `torchrun --nproc-per-node 2 -m trainer RECIPE.yaml [--set key=value]... [--resume]`.

The same as `torchrun --nproc-per-node 2 --no-python mlpdata train RECIPE.yaml ...`, which also works in a folder that
has a `trainer.py` of its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import NoReturn

from mlpdata.errors import Error


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Several processes train one model.")
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this recipe's run")
    parser.add_argument(
        "--force", action="store_true", help="with --resume: go on with changed settings that --set names"
    )
    parser.add_argument("--profile", action="store_true", help="measure the speed and train nothing")
    args = parser.parse_args()
    run_as_one_of_many(args.recipe, args.overrides, resume=args.resume, force=args.force, profile=args.profile)


def run_as_one_of_many(recipe: str, overrides: list[str], **options) -> NoReturn:
    """Train in a process that torchrun started, and end it. options: of `trainer.train.run`."""
    status = 1
    try:
        # Until the training handles its signals itself, SIGTERM ends the process with a message too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from trainer.train import run

        run(recipe, overrides, **options)
        status = 0
    except Error as e:
        print(f"trainer: error: process {os.environ.get('RANK', 0)}: {e}", file=sys.stderr)
    except KeyboardInterrupt:
        print("trainer: stopped", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip the interpreter's shutdown: there, a group that lost a process sometimes aborts instead of giving the status.
    os._exit(status)


if __name__ == "__main__":
    main()
