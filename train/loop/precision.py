"""bfloat16 or float32: the caller's choice, or whichever a short measurement on this machine finds faster."""

import copy
import time
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn


Precision = Literal["auto", "float32", "bfloat16"]


def autocast(device: str | torch.device, precision: Precision) -> AbstractContextManager:
    """A context in which convolutions and matrix products run in `precision` ("auto" must be settled first, see
    `settle`)."""
    assert precision in ("float32", "bfloat16"), precision
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def settle(precision: Precision, network: nn.Module, sample: torch.Tensor) -> Precision:
    """`precision`, or for "auto" the one in which a forward and backward pass of `network` over `sample` is faster."""
    if precision != "auto":
        return precision
    # A copy, and in evaluation: the sample must neither move running statistics nor draw from the generators.
    trial = copy.deepcopy(network).eval()
    seconds = {"float32": _time_pass(trial, sample, "float32"), "bfloat16": _time_pass(trial, sample, "bfloat16")}
    # bfloat16 has 8 bits of mantissa: it must earn its rounding by a clear margin.
    chosen = "bfloat16" if seconds["bfloat16"] < 0.8 * seconds["float32"] else "float32"
    print(f"{chosen} (a pass takes {seconds['float32']:.2f} s in float32, {seconds['bfloat16']:.2f} s in bfloat16)")
    return chosen


def _time_pass(network: nn.Module, sample: torch.Tensor, precision: Precision) -> float:
    best = float("inf")
    # The first pass builds the convolutions' primitives and does not count.
    for turn in range(3):
        started = time.perf_counter()
        with autocast(sample.device, precision):
            output = network(sample)
        outputs = output if isinstance(output, tuple) else (output,)
        sum(o.float().mean() for o in outputs).backward()
        if sample.device.type == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - started)
    return best
