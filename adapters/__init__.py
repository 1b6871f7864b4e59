"""MONAI models as ART estimators, and torchattacks' attacks as ART attacks."""

from medadv.adapters.estimators import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.adapters.torchattacks import TorchAttack

__all__ = ["MonaiClassifier", "MonaiMultilabelClassifier", "MonaiSegmenter", "TorchAttack"]
