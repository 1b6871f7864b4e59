"""What a grey value means: its range, its unit, the window it is shown in, the grid it is stored on; and budgets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Bound = float | tuple[float, ...]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FRACTION = re.compile(rf"^\s*({_NUMBER})\s*/\s*({_NUMBER})\s*$")
_QUANTITY = re.compile(rf"^\s*({_NUMBER})\s*([^\d\s/].*?)?\s*$")


@dataclass(frozen=True)
class Budget:
    """A perturbation budget resolved against an :class:`Intensity`.

    Attributes:
        eps: radius in data units (for per-channel ranges: of a channel whose weight is 1).
        unit: unit of ``eps``; empty where the data have none.
        fraction: ``eps`` as a share of the window, or of the range where there is no window.
        weights: relative radius per channel, or None where all channels share ``eps``.
    """

    eps: float
    unit: str
    fraction: float
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Intensity:
    """Range and meaning of an image's grey values.

    Args:
        low: least possible value; one number, or one per channel.
        high: greatest possible value.
        unit: physical unit such as ``"HU"``; empty where values are normalised or arbitrary.
        window: ``(low, high)`` that the network or the reader sees; fractions such as ``"8/255"`` refer to it.
        grid: ``(step, offset)`` of the stored file: adversarial values are ``offset + k * step``. ``(1, 0)`` for
            integers. None: any float.

    Raises:
        ValueError: ranges that are empty, not finite, or of unequal length.

    Example:
        >>> from medadv.intensities import Intensity
        >>> ct = Intensity(-1024, 3071, unit="HU", window=(-175, 250))
        >>> round(ct.budget("8/255").eps, 2), ct.budget("10 HU").eps
        (13.33, 10.0)
        >>> Intensity(0, 1).budget("8/255").fraction == 8 / 255
        True
    """

    low: Bound
    high: Bound
    unit: str = ""
    window: tuple[float, float] | None = None
    grid: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            bound = tuple(map(float, value)) if isinstance(value, Sequence | np.ndarray) else float(value)
            object.__setattr__(self, name, bound)
        if len(self.lows) != len(self.highs):
            raise ValueError(f"low has {len(self.lows)} values and high {len(self.highs)}; give one each per channel.")
        if not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(self.lows, self.highs, strict=True)):
            raise ValueError(f"low={self.low}, high={self.high} is no range; give finite numbers with low < high.")
        if self.window is not None:
            start, stop = self.window
            if not (math.isfinite(start) and math.isfinite(stop) and start < stop):
                raise ValueError(f"window={self.window} is no range; give (low, high) with low < high.")
        if self.grid is not None:
            step, offset = self.grid
            if not (math.isfinite(offset) and math.isfinite(step) and step > 0):
                raise ValueError(f"grid={self.grid} is no storage grid; give (step, offset) with step > 0.")

    @classmethod
    def from_data(cls, x: Any, *, per_channel: bool = False, unit: str = "", margin: float = 0.0) -> Intensity:
        """Measures the range of images, for data such as z-scored MR that have no natural bounds.

        Args:
            x: images ``(N, C, *S)``.
            per_channel: one range per channel instead of one for all.
            unit: as in :class:`Intensity`.
            margin: share of the measured width added below and above.

        Returns:
            The intensity; an adversarial image stays inside what these images show.

        Example:
            >>> import torch
            >>> Intensity.from_data(torch.tensor([[[[-1.0, 3.0]]]]))
            Intensity(low=-1.0, high=3.0, unit='', window=None, grid=None)
        """
        tensor = torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x).detach().to(torch.float64)
        if tensor.ndim < 2 or not tensor.numel() or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"cannot measure a range on shape {tuple(tensor.shape)}; give finite images (N, C, *S).")
        flat = tensor.transpose(0, 1).flatten(1) if per_channel else tensor.flatten()[None]
        low, high = flat.amin(1), flat.amax(1)
        pad = (high - low) * margin
        lows, highs = tuple((low - pad).tolist()), tuple((high + pad).tolist())
        return cls(lows, highs, unit) if per_channel else cls(lows[0], highs[0], unit)

    @property
    def lows(self) -> tuple[float, ...]:
        """Lower bounds, one per channel or a single one for all."""
        return self.low if isinstance(self.low, tuple) else (self.low,)

    @property
    def highs(self) -> tuple[float, ...]:
        """Upper bounds, one per channel or a single one for all."""
        return self.high if isinstance(self.high, tuple) else (self.high,)

    @property
    def widths(self) -> tuple[float, ...]:
        """What a budget of 1 (``"255/255"``) spans: the window, else high - low; per channel or single."""
        if self.window is not None:
            return (self.window[1] - self.window[0],)
        return tuple(b - a for a, b in zip(self.lows, self.highs, strict=True))

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """``low`` and ``high`` as tensors that broadcast to ``like`` ``(N, C, *S)``."""
        shape = (1, -1, *[1] * (like.ndim - 2))
        low, high = (torch.tensor(b, dtype=like.dtype, device=like.device).view(shape) for b in (self.lows, self.highs))
        return low, high

    def budget(self, eps: float | int | str) -> Budget:
        """Resolves a budget.

        Args:
            eps: ``"8/255"`` (of the window, else of high - low), ``"10 HU"`` (in the unit of the data), or a raw
                number in data units.

        Raises:
            ValueError: negative, not finite, unreadable, in another unit, or a fraction where a physical unit has no
                window (8/255 of -1024..3071 HU would be 128 HU).
            TypeError: neither a number nor a string.
        """
        if isinstance(eps, str):
            return self._parse(eps)
        if isinstance(eps, bool) or not isinstance(eps, int | float | np.number):
            raise TypeError(f"eps must be a number or a string such as '8/255', got {type(eps).__name__}.")
        return self._budget(float(eps), eps)

    def _parse(self, text: str) -> Budget:
        if match := _FRACTION.match(text):
            if self.unit and self.window is None:
                raise ValueError(
                    f"eps={text!r} is a fraction, but the data are in {self.unit} without a window and a fraction of "
                    f"the full range {self.low} to {self.high} is rarely meant; give Intensity(..., window=(low, "
                    f"high)) or eps in {self.unit}."
                )
            over, under = float(match[1]), float(match[2])
            if under <= 0:
                raise ValueError(f"eps={text!r} has no positive denominator; write it like '8/255'.")
            share = over / under
            if len(self.widths) == 1:
                return self._budget(share * self.widths[0], text)
            scale = max(self.widths)
            return replace(self._budget(share * scale, text), weights=tuple(w / scale for w in self.widths))
        if match := _QUANTITY.match(text):
            if (unit := match[2] or "") and unit != self.unit:
                known = f"the data are in {self.unit}" if self.unit else "the data have no unit"
                raise ValueError(
                    f"eps={text!r} is in {unit}, but {known}; give eps in that unit or as a fraction like '8/255'."
                )
            return self._budget(float(match[1]), text)
        unit = f", '10 {self.unit}'" if self.unit else ""
        raise ValueError(f"eps={text!r} can't be read; write '8/255'{unit} or a number in data units.")

    def _budget(self, value: float, given: Any) -> Budget:
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"eps={given!r} must be finite and not negative.")
        return Budget(value, self.unit, value / max(self.widths))

    def check(self, x: Tensor, *, tolerance: float = 0.0) -> None:
        """Refuses images that can't be what this intensity describes.

        Args:
            x: images ``(N, C, *S)``.
            tolerance: how far outside is still accepted, as a share of high - low (ART's attacks overshoot by
                rounding).

        Raises:
            ValueError: NaN or infinite values, another number of channels, values outside the range or off the grid.
        """
        if len(self.lows) not in (1, x.shape[1]):
            raise ValueError(
                f"images have {x.shape[1]} channels, the intensity range has {len(self.lows)}; give one each or "
                "one for all."
            )
        if not x.numel():
            return
        # the extremes of each channel, as masks are slow on a CPU; NaN is the extreme of what holds it
        of_channels = x.transpose(0, 1).flatten(1)
        shape = (1, -1, *[1] * (x.ndim - 2))
        least, most = of_channels.amin(1).view(shape), of_channels.amax(1).view(shape)
        if not bool((torch.isfinite(least) & torch.isfinite(most)).all()):
            raise ValueError("images hold NaN or infinite values; replace them before the model sees them.")
        low, high = self.bounds(x)
        slack = tolerance * (high - low)
        if bool(((least < low - slack) | (most > high + slack)).any()):
            raise ValueError(
                f"images hold values from {float(x.min()):g} to {float(x.max()):g}, outside the intensity range "
                f"{self.low} to {self.high}{' ' + self.unit if self.unit else ''}; rescale them or state their true "
                "range (Intensity.from_data measures it). Nothing is clamped silently."
            )
        if self.grid is not None and not tolerance and not bool(self.on_grid(x).all()):
            raise ValueError(
                f"images hold values off the storage grid {self.grid}; give the stored values or grid=None."
            )

    def on_grid(self, x: Tensor) -> Tensor:
        """Where ``x`` lies on the storage grid to within its own rounding; all True without a grid."""
        if self.grid is None:
            return torch.ones_like(x, dtype=torch.bool)
        return torch.isclose(self.snap(x), x, rtol=4 * torch.finfo(x.dtype).eps, atol=0.0)

    def snap(self, x: Tensor, rounding: str = "nearest") -> Tensor:
        """The storage grid's value nearest to ``x``, or next ``"up"`` or ``"down"``; ``x`` itself without a grid."""
        if self.grid is None:
            return x
        step, offset = self.grid
        # in float64, as readers scale: in float32 a value of the file may come out beside itself
        cells = (x.to(torch.float64) - offset) / step
        whole = cells.round()
        if rounding != "nearest":
            # a value that is on the grid up to rounding must not be moved to its neighbour
            settled = (cells - whole).abs() <= 1e-6 * whole.abs().clamp(min=1)
            directed = cells.ceil() if rounding == "up" else cells.floor()
            whole = torch.where(settled, whole, directed)
        return (whole * step + offset).to(x.dtype)
