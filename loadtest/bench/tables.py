"""The tables of a run."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table

from loadtest.bench.plan import cells
from loadtest.bench.results import Result, over_floor, spread


def show(result: Result) -> Group:
    """Everything that was measured."""
    parts: list[Table | str] = [floor_line(result), loads_table(result), rests_table(result)]
    if result.cache:
        parts.append(cache_table(result))
    return Group(*parts)


def floor_line(result: Result) -> str:
    """The floors, measured whole before the rounds."""
    return "\n".join(
        f"floor, {mix} lengths (mean {floor.mean_tokens:.0f} tokens): {floor.cpu_seconds_per_1k:.2f} CPU-s / 1,000 "
        f"sorted in batches of {floor.rows} ({floor.tokenize_cpu_seconds_per_1k:.2f} of it tokenizing); "
        f"{floor.single_cpu_seconds_per_1k:.2f} one at a time, p50 {floor.single_p50_ms:.1f} ms, "
        f"p99 {floor.single_p99_ms:.1f} ms"
        for mix, floor in result.floors.items()
    )


def loads_table(result: Result) -> Table:
    """A row for each contestant and load; the absent are named with the reason."""
    table = Table(
        "contestant", "lengths", "clients", "CPU-s / 1,000", "x floor (min - max)", "requests/s", title="load"
    )
    for heading in ("p50 ms", "p95 ms", "p99 ms", "failed"):
        table.add_column(heading, justify="right")
    for name in result.contestants():
        for cell in cells(result.plan):
            found = result.loads(name, cell.mix, cell.clients)
            if not found:
                continue
            table.add_row(
                name,
                cell.mix,
                str(cell.clients),
                middle((one.cpu_seconds_per_1k for one in found), 2),
                str(over_floor(result, name, cell.mix, cell.clients)),
                middle((one.requests_per_second for one in found), 0),
                middle((one.p50_ms for one in found), 1),
                middle((one.p95_ms for one in found), 1),
                middle((one.p99_ms for one in found), 1),
                str(sum(sum(one.failures.values()) for one in found) or ""),
            )
        table.add_section()
    for name, why in result.absent.items():
        table.add_row(name, "absent", "", "", why if len(why) < 160 else f"{why[:160]} …")
    return table


def rests_table(result: Result) -> Table:
    """Starting, idling, memory and the low rates."""
    rates = result.plan.rates_per_s
    table = Table("contestant", "ready s", "start CPU-s", "idle CPU-s a minute", "memory MB (PSS)", title="at rest")
    for rate in rates:
        table.add_column(f"CPU-s / 1,000 at {rate:g}/s", justify="right")
        table.add_column("p99 ms", justify="right")
    for rest in result.rests:
        row = [rest.contestant, f"{rest.ready_s:.1f}", f"{rest.start_cpu_seconds:.1f}"]
        row += [f"{rest.idle_cpu_seconds_per_minute:.2f}", f"{rest.pss_mb:.0f}"]
        for rate in rates:
            found = [one for one in result.rates if (one.contestant, one.rate_per_s) == (rest.contestant, rate)]
            row += [middle((one.cpu_seconds_per_1k for one in found), 1), middle((one.p99_ms for one in found), 1)]
        table.add_row(*row)
    return table


def cache_table(result: Result) -> Table:
    """What the cache saves."""
    table = Table(
        "contestant", "unique CPU-s / 1,000", "repeated", "hits", "CPU saved", "saved / hits", "all hits", "gRPC hits"
    )
    table.title = "cache on"
    for one in result.cache:
        table.add_row(
            one.contestant,
            f"{one.unique_cpu_seconds_per_1k:.2f}",
            f"{one.repeated_cpu_seconds_per_1k:.2f}",
            f"{one.hit_share:.1%}",
            f"{one.saved:.1%}",
            f"{one.saved / one.hit_share:.2f}" if one.hit_share else "",
            f"{one.hit_cpu_seconds_per_1k:.3f}",
            "" if one.grpc_hit_cpu_seconds_per_1k is None else f"{one.grpc_hit_cpu_seconds_per_1k:.3f}",
        )
    return table


def middle(values: Iterator[float], digits: int) -> str:
    """The median as text; empty for no values."""
    found = spread(values)
    return "" if found is None else f"{found.median:.{digits}f}"
