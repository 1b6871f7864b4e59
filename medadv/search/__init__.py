"""How the attacker looks for the best theta of a :class:`~medadv.problem.Problem`.

A gradient search of K steps costs K + 1 forward and K backward passes per start (K and K with ``keep="last"``);
a random search of K steps costs K forward passes per start.
"""

from medadv.search.auto_pgd import AutoPGD, checkpoints
from medadv.search.auto_pgd_l1 import AutoPGDL1
from medadv.search.base import RandomDraws, Search
from medadv.search.gradient import SteepestAscent
from medadv.search.random_search import RandomSearch
from medadv.search.simba import SimBA
from medadv.search.square import Square

__all__ = ["AutoPGD", "AutoPGDL1", "RandomDraws", "Search", "SteepestAscent", "checkpoints"]
__all__ = ["AutoPGD", "RandomDraws", "RandomSearch", "Search", "SimBA", "Square", "SteepestAscent", "checkpoints"]
