"""Fit the planner's hardware figures to measurements of a machine, and write them to a machine file.

Hardware figures are rates, latencies and efficiencies. They are fitted so that the planner's own cost
formulas (`planner.costs`) predict the measured times. `engine.microbenchmarks` does the measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, log
from statistics import median
from typing import Protocol

from paradit.models.transformer_spec import TransformerSpec
from paradit.models.vae_spec import VaeSpec
from paradit.planner.costs import (
    KERNELS,
    attention_seconds,
    block_seconds,
    decode_seconds,
    product_seconds,
)
from paradit.planner.hardware import Device, Link


class Work(Protocol):
    """Protocol of a measured operation, such as a matrix product, whose time can also be predicted."""

    @property
    def text(self) -> str:
        """Description of the operation for people, such as "bf16 64x768x768"."""

    def seconds(self, device: Device) -> float:
        """Return the seconds that the cost formulas predict for the operation on a device."""


@dataclass(frozen=True)
class Product:
    """Matrix product [rows, inner] x [inner, columns] whose time was measured."""

    dtype: str
    rows: int
    inner: int
    columns: int

    @property
    def text(self) -> str:
        return f"{self.dtype} {self.rows}x{self.inner}x{self.columns}"

    def seconds(self, device: Device) -> float:
        return product_seconds(device, self.dtype, self.rows, self.inner, self.columns)


@dataclass(frozen=True)
class Attention:
    """Attention computation whose time was measured: in each head, `rows` queries attend to `keys` keys."""

    dtype: str
    heads: int
    rows: int
    keys: int
    head_dim: int

    @property
    def text(self) -> str:
        return f"{self.dtype} {self.heads} heads of {self.head_dim}, {self.rows} rows, {self.keys} keys"

    def seconds(self, device: Device) -> float:
        pieces = self.heads * self.rows
        return attention_seconds(device, self.dtype, pieces, self.keys, self.head_dim)


@dataclass(frozen=True)
class Block:
    """Transformer block, without self-attention, whose time on one video was measured.

    Its field `spec` describes a transformer with a single layer, this block.
    """

    dtype: str
    spec: TransformerSpec
    tokens: int
    text_tokens: int

    @property
    def text(self) -> str:
        return f"{self.dtype} width {self.spec.width}, {self.tokens} tokens"

    def seconds(self, device: Device) -> float:
        block = block_seconds(
            self.spec,
            device,
            held=self.tokens,
            tokens=self.tokens,
            text=self.text_tokens,
            batch=1,
            dtype=self.dtype,
        )
        return 3 * block.value + block.finish


@dataclass(frozen=True)
class Decode:
    """Decode of a video in fp32 whose time was measured; `size` is the video's (frames, height, width)."""

    vae: VaeSpec
    size: tuple[int, int, int]

    @property
    def text(self) -> str:
        frames, height, width = self.size
        return f"VAE of {self.vae.decoder_dim} channels, {width}x{height}, {frames} frames"

    def seconds(self, device: Device) -> float:
        return decode_seconds(self.vae, device, "fp32", self.size)


@dataclass(frozen=True)
class Measured:
    """Measurement of an operation: the operation, and the seconds that it took."""

    work: Work
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Measured copy rates of a device, its memory size, and whether it launches kernels asynchronously."""

    copied: float
    """Rate of a large copy within the device's memory, in bytes/s; reads and writes both count."""
    memory: float
    """Bytes of device memory that one rank can use."""
    ahead: bool
    """Whether kernels are launched while earlier kernels still run, as on a GPU."""
    fetched: float | None = None
    """Rate of copies from host memory to the devices, in bytes/s, summed over all ranks while all of them
    copy at once; None on a CPU, which has no separate device memory."""


def fit_device(measured: Sequence[Measured], copies: Copies, source: str) -> Device:
    """Return the device figures with which the cost formulas best predict the measured times.

    The figures are fitted for one kind of operation (such as matrix products) after another. source: text
    that says how the figures were obtained.
    """
    kinds = {kind: [one for one in measured if isinstance(one.work, kind)] for kind in KINDS.values()}
    dtypes = list(dict.fromkeys(one.work.dtype for one in kinds[Product]))  # type: ignore[attr-defined]
    # Placeholders, except for what was measured directly. The efficiency of products stays 1, because the
    # dense rates are fitted to the products themselves.
    device = Device(
        name="this",
        dense=dict.fromkeys(dtypes, 1e12),
        memory_bandwidth=copies.copied,
        memory=copies.memory,
        multiprocessors=1.0,
        message_multiprocessors=0.0,
        # The smallest block computes so little that all its time is taken to be spent on launching kernels.
        launch=min(one.seconds for one in kinds[Block]) / KERNELS,
        ahead=copies.ahead,
        narrow=0.0,
        efficiency={"product": 1.0, "flash": dict.fromkeys(dtypes, 1.0), "convolution": 1.0, "memory": 1.0},
        source=source,
    )
    # Products come first: the efficiencies of attention and convolutions are fractions of the dense rates.
    device = _fit_products(device, kinds[Product], dtypes)
    device = _fit_attention(device, kinds[Attention], dtypes)
    device = _fitted(partial(_with_efficiency, device, "memory"), kinds[Block], 1e-3, 10.0)
    return _fit_decodes(device, kinds[Decode])


def _fit_products(device: Device, measured: Sequence[Measured], dtypes: Iterable[str]) -> Device:
    """Fit the figures that decide how long matrix products take on a device to measured times.

    The figures are the device's FLOP/s in each dtype, and its number of multiprocessors. Returns a copy of
    the device's figures with the fitted values.
    """

    # The figures depend on each other, so each number of multiprocessors is tried with the rates that fit
    # it best.
    def with_multiprocessors(multiprocessors: float) -> Device:
        found = replace(device, multiprocessors=multiprocessors)
        for dtype in dtypes:
            found = _fitted(partial(_with_dense, found, dtype), _of(dtype, measured), 1e8, 1e17)
        return found

    return _fitted(with_multiprocessors, measured, 1e-2, 1e3)


def _fit_attention(device: Device, measured: Sequence[Measured], dtypes: Iterable[str]) -> Device:
    """Fit the efficiency of attention in each dtype, and the cost of its softmax.

    Returns a copy of the device's figures with the fitted values.
    """

    def with_softmax(softmax: float) -> Device:
        found = replace(device, softmax=softmax)
        for dtype in dtypes:
            found = _fitted(partial(_with_attention, found, dtype), _of(dtype, measured), 1e-3, 1e3)
        return found

    return _fitted(with_softmax, measured, 1e-2, 1e3)


def _fit_decodes(device: Device, measured: Sequence[Measured]) -> Device:
    """Fit the efficiency of convolutions, and how much the efficiency declines if there are few channels.

    Returns a copy of the device's figures with the fitted values.
    """

    def with_narrow(narrow: float) -> Device:
        found = replace(device, narrow=narrow)
        return _fitted(partial(_with_efficiency, found, "convolution"), measured, 1e-5, 1e3)

    return _fitted(with_narrow, measured, 1e-2, 1e3)


def _of(dtype: str, measured: Sequence[Measured]) -> list[Measured]:
    return [one for one in measured if getattr(one.work, "dtype", None) == dtype]


def _with_dense(device: Device, dtype: str, rate: float) -> Device:
    return replace(device, dense={**device.dense, dtype: rate})


def _with_efficiency(device: Device, kind: str, value: float) -> Device:
    return replace(device, efficiency={**device.efficiency, kind: value})


def _with_attention(device: Device, dtype: str, value: float) -> Device:
    efficiency = device.efficiency["flash"]
    assert isinstance(efficiency, Mapping)
    return replace(device, efficiency={**device.efficiency, "flash": {**efficiency, dtype: value}})


def residuals(measured: Iterable[Measured], device: Device) -> list[float]:
    """Return the relative error, (predicted - measured) / measured, of each measurement."""
    return [one.work.seconds(device) / one.seconds - 1 for one in measured]


def median_error(measured: Iterable[Measured], device: Device, kind: str) -> float:
    """Return the median absolute relative error of predictions for one kind of operation (key of `KINDS`)."""
    of_kind = [one for one in measured if isinstance(one.work, KINDS[kind])]
    return median(abs(error) for error in residuals(of_kind, device))


def _misfit(device: Device, measured: Sequence[Measured]) -> float:
    """Return how badly a device's figures fit measurements: the sum of |log(predicted / measured)|.

    The logarithm makes short operations count as much as long ones.
    """
    return sum(abs(log(one.work.seconds(device) / one.seconds)) for one in measured)


def _fitted(
    change: Callable[[float], Device], measured: Sequence[Measured], low: float, high: float
) -> Device:
    """Return a copy of a device's figures in which one figure, within [low, high], is fitted to measurements.

    change: function that returns the device with a given value of that figure. The search refines a
    logarithmic grid; it finds the best value if the error has a single minimum.
    """
    begin, end, steps = log(low), log(high), 24
    while end - begin > 1e-3:  # a tenth of a percent
        points = [begin + (end - begin) * step / steps for step in range(steps + 1)]
        misfits = [_misfit(change(exp(point)), measured) for point in points]
        best = misfits.index(min(misfits))
        begin, end = points[max(0, best - 1)], points[min(steps, best + 1)]
    return change(exp((begin + end) / 2))


KINDS = {"product": Product, "attention": Attention, "block": Block, "decode": Decode}


def machine_file(
    device: Device,
    link: Link,
    ranks: int,
    measured: Sequence[Measured],
    about: Sequence[str],
    *,
    neighbours: Link | None = None,
) -> str:
    """Return the text of a machine file: the TOML file of hardware figures that `find_cluster` reads.

    about: comment lines for the head of the file. neighbours: link between neighbouring ranks (0 and 1, 2 and
    3, ...), or None if they have no link of their own.
    """
    lines = [*(f"# {line}" for line in about), "", f"ranks = {ranks}", "machines = 1", ""]
    lines += ["[devices.this]", f'source = "{device.source}"', f"dense = {_inline(device.dense)}"]
    for name in (
        "memory_bandwidth",
        "memory",
        "multiprocessors",
        "message_multiprocessors",
        "launch",
        "softmax",
        "narrow",
        "posting",
    ):
        lines.append(f"{name} = {_number(getattr(device, name))}")
    lines += [f"ahead = {str(device.ahead).lower()}", "", "[devices.this.efficiency]"]
    for name, efficiency in device.efficiency.items():
        lines.append(
            f"{name} = {_number(efficiency) if isinstance(efficiency, float) else _inline(efficiency)}"
        )
    for one in (link, neighbours):
        lines += _link_lines(one) if one is not None else []
    lines += ["", "[residuals]  # of each kind: seconds as measured, and as the formulas say"]
    for name, kind in KINDS.items():
        found = [one for one in measured if isinstance(one.work, kind)]
        errors = sorted(abs(error) for error in residuals(found, device))
        lines.append(f"# {name}: median error {100 * median(errors):.1f} %, largest {100 * errors[-1]:.1f} %")
        lines.append(f"{name} = [")
        lines += [
            f'  {{ what = "{one.work.text}", measured = {_number(one.seconds)}, '
            f"formula = {_number(one.work.seconds(device))} }},"
            for one in found
        ]
        lines.append("]")
    return "\n".join(lines) + "\n"


def _link_lines(link: Link) -> list[str]:
    lines = ["", f"[links.{link.name}]", 'source = "the same measurement"']
    for name in ("latency", "bandwidth", "peer", "shared", "copy"):
        value = getattr(link, name)
        lines += [] if value is None else [f"{name} = {_number(value)}"]
    return lines


def _inline(numbers: object) -> str:
    assert isinstance(numbers, dict)
    return "{ " + ", ".join(f"{name} = {_number(value)}" for name, value in numbers.items()) + " }"


def _number(value: float) -> str:
    text = f"{value:.6g}"
    # TOML reads digits alone as an integer. A letter n is in inf and nan, which are floats.
    return text if {".", "e", "n"} & set(text) else f"{text}.0"
