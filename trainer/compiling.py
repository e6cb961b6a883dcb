"""torch.compile, with the eager function in its place where compiling fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from mlpdata.errors import compiler_reason


def compile_or_warn(function: Callable, *, fullgraph: bool = True) -> Callable:
    """The function compiled for fixed shapes. If that fails, a warning says why and the function runs as it is."""
    compiled, works = torch.compile(function, fullgraph=fullgraph, dynamic=False), True

    def call(*inputs):
        nonlocal works
        if works:
            try:
                return compiled(*inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception as e:  # the compiler, and what it calls, raise nearly anything
                works, reason = False, compiler_reason(e)
                warnings.warn(f"train.compile: it runs uncompiled, which is slower: {reason:.300}", stacklevel=2)
        return function(*inputs)

    return call
