"""MONAI models as ART estimators."""

from medadv.adapters.estimators import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter

__all__ = ["MonaiClassifier", "MonaiMultilabelClassifier", "MonaiSegmenter"]
