"""Several processes at one model: `torchrun --nproc-per-node 2 -m trainer RECIPE.yaml [--set key=value]... [--resume]`.

The same as `mlpdata train`, which is for one process.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from mlpdata.errors import Error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Several processes train one model.")
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this recipe's run")
    parser.add_argument("--profile", action="store_true", help="measure the speed and train nothing")
    args = parser.parse_args()
    try:
        # Until the training handles its signals itself, SIGTERM ends the process with a message too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from trainer.train import run

        run(args.recipe, args.overrides, resume=args.resume, profile=args.profile)
    except Error as e:
        print(f"trainer: error: process {os.environ.get('RANK', 0)}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trainer: stopped", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip the interpreter's shutdown: there, a group that lost a process sometimes aborts instead of giving the status.
    os._exit(status)
