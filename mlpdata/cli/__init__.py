"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from mlpdata.cli import data, export, shards, training
from mlpdata.cli.group import main

__all__ = ["data", "export", "main", "shards", "training"]
