"""Noise of the acquisition: what an image may look like by chance, and the baseline every attack must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from medadv.threats.base import CaseRandom, case_norm
from medadv.threats.intensity_fields import window_of
from medadv.threats.parametric import ParametricThreat

# draws further out than this many standard deviations are cut off: 1 in 500 million
TAIL = 6.0


class AcquisitionNoise(ParametricThreat):
    """Noise of one distribution; theta is the draw, and its root mean square is what :meth:`distance` tells.

    The budget is the strength of the noise, no limit for a voxel; only draws far out in the tail are cut off.
    """

    def distance(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        if theta is None:
            raise ValueError("the strength of noise is read off its draw, not off the image; give theta.")
        return case_norm(theta.to(torch.float64)) / theta[0].numel() ** 0.5


class RicianNoise(AcquisitionNoise):
    """The noise of MR magnitude images: ``x' = low + sqrt((x - low + n1)^2 + n2^2)``.

    Theta, ``(N, 2, C, *S)``, holds the real and imaginary parts n1 and n2 as shares of the window (of the range where
    there is none): normal with standard deviation eps. Where there is no signal this is a Rayleigh distribution, so a
    dark background gets brighter by ``eps sqrt(pi / 2)`` on average, as on a scanner.

    Example:
        >>> import torch
        >>> from medadv.intensities import Budget, Intensity
        >>> from medadv.threats import CaseRandom
        >>> threat = RicianNoise(torch.zeros(1, 1, 300, 300), Budget(0.1, "", 0.1), Intensity(0, 1))
        >>> round(float(threat.apply(threat.start(CaseRandom(0, ["case"]))).mean()), 3)
        0.125
    """

    def box(self) -> tuple[Tensor, Tensor]:
        most = self.x.new_full((len(self.x), 2, *self.x.shape[1:]), TAIL * self.radius)
        return -most, most

    def start(self, random: CaseRandom | None) -> Tensor:
        if random is None:
            return torch.zeros_like(self.least)
        return self.project(self.radius * random.normal(self.least))

    def transform(self, theta: Tensor) -> Tensor:
        low = self.intensity.bounds(self.x)[0]
        width = window_of(self.intensity, self.x)[1]
        real, imaginary = (theta * width[:, None]).unbind(1)
        return low + torch.hypot(self.x - low + real, imaginary)


class PoissonNoise(AcquisitionNoise):
    """Counting noise, as in X-ray images: grey values above the least one are counts of photons.

    A voxel has ``(x - low) / (middle - low) / eps^2`` counts on average, with middle the middle of the window (of the
    range where there is none): there the noise has a standard deviation of eps relative to the signal, elsewhere of
    ``eps sqrt((middle - low) / (x - low))``. Theta, ``(N, C, *S)``, is the deviation of the counts from their mean, in
    parts of the counts in the middle.

    Example:
        >>> import torch
        >>> from medadv.intensities import Budget, Intensity
        >>> from medadv.threats import CaseRandom
        >>> threat = PoissonNoise(torch.full((1, 1, 300, 300), 0.5), Budget(0.1, "", 0.1), Intensity(0, 1))
        >>> noisy = threat.apply(threat.start(CaseRandom(0, ["case"])))
        >>> round(float(noisy.mean()), 2), round(float(noisy.std()), 2)
        (0.5, 0.05)
    """

    def _signal(self) -> tuple[Tensor, Tensor]:
        """The image in parts of the middle of the window, ``(N, C, *S)``, and that middle, both above low."""
        low = self.intensity.bounds(self.x)[0]
        start, width = window_of(self.intensity, self.x)
        middle = start + width / 2 - low
        if not bool((middle > 0).all()):
            raise ValueError(
                f"the window {self.intensity.window} has its middle below the least grey value {self.intensity.low}, "
                "so its counts have no mean; state a window inside the range."
            )
        return (self.x - low) / middle, middle

    def box(self) -> tuple[Tensor, Tensor]:
        signal = self._signal()[0]
        return -signal * (self.radius > 0), TAIL * self.radius * (signal.sqrt() + TAIL * self.radius)

    def start(self, random: CaseRandom | None) -> Tensor:
        if random is None or not self.radius:
            return torch.zeros_like(self.least)
        signal = self._signal()[0].to(torch.float64)
        rates = (signal / self.radius**2).cpu()
        pairs = zip(rates, random.generators, strict=True)
        counts = torch.stack([torch.poisson(rate, generator=generator) for rate, generator in pairs])
        return self.project((counts.to(signal.device) * self.radius**2 - signal).to(self.x.dtype))

    def transform(self, theta: Tensor) -> Tensor:
        return self.x + theta * self._signal()[1]
