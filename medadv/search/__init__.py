"""How the attacker looks for the best theta of a :class:`~medadv.problem.Problem`.

A gradient search of K steps costs K + 1 forward and K backward passes per start (K and K with ``keep="last"``).
"""

from medadv.search.auto_pgd import AutoPGD, checkpoints
from medadv.search.auto_pgd_l1 import AutoPGDL1
from medadv.search.base import RandomDraws, Search
from medadv.search.gradient import SteepestAscent

__all__ = ["AutoPGD", "AutoPGDL1", "RandomDraws", "Search", "SteepestAscent", "checkpoints"]
