"""Benchmarks: from models, data and attacks to a leaderboard."""

from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.run import evaluate, run_suite
from medadv.benchmarks.suites import load_suite, suite_names

__all__ = ["Leaderboard", "evaluate", "load_suite", "run_suite", "suite_names"]
