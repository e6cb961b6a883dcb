"""`python -m mlpdata.cli` is `mlpdata`."""

from mlpdata.cli import main

main(prog_name="mlpdata")
