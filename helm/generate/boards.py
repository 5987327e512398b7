"""The dashboards.

Counters of several machines are added up; what the conductor tells all of them alike is taken once, by `max`.
"""

from __future__ import annotations

from helm.generate.carbon_board import CARBON
from helm.generate.energy_board import ENERGY
from helm.generate.serving_board import SERVING

BOARDS = {"energy": ENERGY, "serving": SERVING, "carbon": CARBON}
"""By the name of their file."""
