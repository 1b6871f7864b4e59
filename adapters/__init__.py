"""MONAI models and bundles as ART estimators, and torchattacks' attacks as ART attacks."""

from medadv.adapters.bundle_files import BundleError
from medadv.adapters.bundles import from_bundle
from medadv.adapters.calibration import Calibration, calibrate
from medadv.adapters.cases import Case, case_of
from medadv.adapters.deployments import Deployment
from medadv.adapters.estimators import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.adapters.torchattacks import TorchAttack

__all__ = [
    "BundleError",
    "Case",
    "Calibration",
    "Deployment",
    "MonaiClassifier",
    "MonaiMultilabelClassifier",
    "MonaiSegmenter",
    "TorchAttack",
    "case_of",
    "calibrate",
    "from_bundle",
]
