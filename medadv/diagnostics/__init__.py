"""Can this robustness number be trusted? Each check returns its evidence and, where it fails, a flag for the table.

The checks of AutoAttack (arXiv 2003.01690) and RobustBench (arXiv 2010.09670), and those of arXiv 1802.00420 and
1902.06705, carried over to segmentation, several labels and volumes. All of them are rows of
``medadv.diagnostics.registry.CHECKS``; what fails names the adaptive attack to run.
"""

from medadv.diagnostics.finding import Check, Finding, as_frame
from medadv.diagnostics.model import diagnose, repeatable, run_checks, zero_gradients
from medadv.diagnostics.probe import Probe
from medadv.diagnostics.registry import CHECKS
from medadv.diagnostics.tables import knows_less, monotone

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Probe",
    "as_frame",
    "diagnose",
    "knows_less",
    "monotone",
    "repeatable",
    "run_checks",
    "zero_gradients",
]
