"""Kinds of parameters, and the options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path

import click

from mlpdata.cli.group import tell


class ShardDirectory(click.ParamType):
    """A shard directory: here, or hf:OWNER/NAME or a URL, of which a verified copy is made."""

    name = "directory"

    def late(self, value):
        """What the command gets; see mlpdata.cli.group.Command."""
        from mlpdata.shards import remote

        return remote.local_copy(value, tell)


SHARDS = ShardDirectory()


class Share(click.ParamType):
    name = "K/N"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        k, _, n = value.partition("/")
        if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
            self.fail(f"{value!r} is not K/N with K from 1 to N, as 2/4", param, ctx)
        return int(k), int(n)


class FiniteRange(click.FloatRange):
    """A range of floats without nan and inf, which click lets pass."""

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def path_or_url(text: str):
    from mlpdata.shards import remote

    return text if remote.is_remote(text) else Path(text)


def json_option(help: str = "Print JSON, for programs."):
    """The option --json."""
    return click.option("--json", "as_json", is_flag=True, help=help)


split_option = click.option("--split", default="train")
quiet_option = click.option("--quiet", is_flag=True, help="No progress line.")
