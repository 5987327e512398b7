from __future__ import annotations

from energy.ledger import Conservation
from server.node.recent import WINDOW_S, RecentLaw


def books(measured: int, idle: int) -> Conservation:
    return Conservation(measured, 0, idle, 0, 0, 0)


def test_an_error_shows_against_the_joules_of_the_last_five_minutes() -> None:
    law = RecentLaw()
    assert law.error_ratio(books(10, 5)) == 0
    law.mark(0.0, books(10**12, 10**12))
    assert not law.due(9.0)
    assert law.error_ratio(books(10**12 + 1000, 10**12 + 900)) == 0.1


def test_an_error_that_is_older_is_forgotten() -> None:
    law = RecentLaw()
    law.mark(0.0, books(1000, 1000))
    for second in range(1, int(2 * WINDOW_S)):
        lost = 100 if second >= 5 else 0
        now = books(1000 + 10 * second, 1000 + 10 * second - lost)
        if law.due(float(second)):
            law.mark(float(second), now)
    assert law.error_ratio(now) == 0
