"""Adversarial images as a store keeps them: of all cases, or of those for which they were the worst."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kept:
    """Adversarial images, or those of some cases.

    Attributes:
        rows: of the cases.
        images: of these, ``(len(rows), C, *S)``.
        cases: how many there are.
    """

    rows: np.ndarray
    images: np.ndarray
    cases: int

    @classmethod
    def all_of(cls, images: np.ndarray) -> Kept:
        """The images of all cases."""
        return cls(np.arange(len(images)), np.asarray(images), len(images))

    @property
    def whole(self) -> bool:
        """Whether they are those of all cases."""
        return len(self.rows) == self.cases

    def filled(self) -> np.ndarray:
        """``(cases, C, *S)``, NaN where a case is not kept."""
        if self.whole:
            return self.images
        images = np.full((self.cases, *self.images.shape[1:]), np.nan, dtype=self.images.dtype)
        images[self.rows] = self.images
        return images

    def only(self, rows: np.ndarray) -> Kept:
        """Fewer of them."""
        return Kept(rows, self.images[np.searchsorted(self.rows, rows)], self.cases)
