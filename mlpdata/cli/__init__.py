"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from mlpdata.cli import data, derive, export, shards, training
from mlpdata.cli.group import main

__all__ = ["data", "derive", "export", "main", "shards", "training"]
