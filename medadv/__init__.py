"""medadv: how robust is a medical imaging model? An extension of ART for MONAI models.

Example:
    >>> import medadv
    >>> "pgd-dice" in medadv.attacks.CATALOGUE
    True
"""

from medadv import attacks
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity
from medadv.victims import SegmenterMixin

__version__ = "0.1.0"
__all__ = ["Intensity", "Multiclass", "Multilabel", "SegmenterMixin", "__version__", "attacks"]
