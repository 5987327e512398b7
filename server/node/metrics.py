"""The exposition: one table of metrics, and a collector that fills it from the node's books at scrape time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain
from energy.ledger import ENERGY_BOUNDS_JOULES, OVERHEAD, Account, Ledger
from server.node.grid_state import GridState
from server.node.startup import StartUp
from server.node.totals import ServingTotals
from server.node.wire import FAILURES, HISTOGRAMS, PHASES, QUALITIES, Histogram

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
_COUNTED = ("cache_hits", "cache_misses", "cache_l2_hits", "cache_l2_misses", "cache_l2_errors", "escalations")
_ACCOUNT = ("model", "variant", "class", "outcome", "source")

METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "jouleserve_energy_joules": (
        COUNTER,
        ("domain", "device", "source"),
        "Energy metered. Domains psys, core and uncore overlap package: do not add them to it.",
    ),
    "jouleserve_idle_joules": (
        COUNTER,
        ("domain", "device", "source"),
        "Energy that idling would have drawn.",
    ),
    "jouleserve_attributed_joules": (COUNTER, _ACCOUNT, "Dynamic energy that requests owe."),
    "jouleserve_unattributed_joules": (
        COUNTER,
        ("reason",),
        "Dynamic energy that no request owes: overhead of serving, other processes, late records.",
    ),
    "jouleserve_request_energy_joules": (
        HISTOGRAM,
        ("model", "variant"),
        "Dynamic energy of a request.",
    ),
    "jouleserve_energy_avoided_joules": (
        COUNTER,
        ("reason",),
        "Energy that was not spent; counted apart, never subtracted.",
    ),
    "jouleserve_carbon_grams": (
        COUNTER,
        ("scope", "model", "variant"),
        "gCO2e of the energy at the grid's average intensity of its time, cooling (PUE) included.",
    ),
    "jouleserve_energy_conservation_error_ratio": (
        GAUGE,
        (),
        "Joules lost or invented between the meters' counters and the books, as a share of the metered ones.",
    ),
    "jouleserve_energy_relative_uncertainty_ratio": (
        GAUGE,
        ("source",),
        "Half width of the error band of the source's joules.",
    ),
    "jouleserve_energy_missing_readings": (
        COUNTER,
        ("domain", "device", "source", "reason"),
        "Ticks in which a counter gave no figure.",
    ),
    "jouleserve_unmetered_joules": (
        COUNTER,
        ("domain", "device", "source", "reason"),
        "What a counter showed over a gap, a reset or an implausible step: at least that, and in no other figure.",
    ),
    "jouleserve_dynamic_joules_per_cpu_second": (
        GAUGE,
        (),
        "What a second of CPU time adds to idling; the rate of provisional figures.",
    ),
    "jouleserve_startup_cpu_seconds": (
        GAUGE,
        (),
        "CPU time of the serving tree until its first replica was ready; absent if the node process did not see it.",
    ),
    "jouleserve_startup_joules": (GAUGE, (), "What that start added to idling, at the rate then in force."),
    "jouleserve_meter_cpu_seconds": (COUNTER, (), "CPU time of the node process itself."),
    "jouleserve_late_records": (COUNTER, (), "Windows closed without a live replica's record."),
    "jouleserve_bad_records": (COUNTER, (), "Datagrams of replicas that could not be read."),
    "jouleserve_unmeasured_cpu_seconds": (
        COUNTER,
        (),
        "CPU time of requests whose window was closed, or never metered, when their record came.",
    ),
    "jouleserve_dropped_claim_cpu_seconds": (
        COUNTER,
        (),
        "CPU time that requests claimed beyond what the serving tree was seen to spend.",
    ),
    "jouleserve_requests": (
        COUNTER,
        ("model", "variant", "point", "class", "outcome"),
        "Texts asked for, by what answered them and how they ended; a call with several texts counts each, one that was"
        " refused before its texts were looked at (outcome refused) counts once.",
    ),
    "jouleserve_request_duration_seconds": (HISTOGRAM, ("phase",), "Time by phase; infer is per batch."),
    "jouleserve_batch_rows": (HISTOGRAM, (), "Texts in a batch."),
    "jouleserve_batch_tokens": (HISTOGRAM, (), "Tokens computed in a batch, padding included."),
    "jouleserve_batch_real_tokens": (COUNTER, (), "Tokens of the texts themselves."),
    "jouleserve_padding_share_ratio": (GAUGE, (), "Padding among the tokens computed so far."),
    "jouleserve_shed_requests": (COUNTER, ("class",), "Texts refused because the queue was full."),
    "jouleserve_cache_hits": (COUNTER, (), "Texts answered from the cache."),
    "jouleserve_cache_misses": (COUNTER, (), "Texts that were not in the cache."),
    "jouleserve_cache_l2_hits": (COUNTER, (), "Texts found in the cache that replicas share."),
    "jouleserve_cache_l2_misses": (COUNTER, (), "Texts that were looked for there in vain."),
    "jouleserve_cache_l2_errors": (COUNTER, (), "Lookups and writes there that failed, and entries that were none."),
    "jouleserve_escalations": (COUNTER, (), "Texts that a cascade's first variant was unsure of, so that both ran."),
    "jouleserve_cache_size_bytes": (GAUGE, (), "Bytes in the caches of the replicas."),
    "jouleserve_cache_entries": (GAUGE, (), "Entries in the caches of the replicas."),
    "jouleserve_queue_depth": (GAUGE, (), "Texts that wait for a batch."),
    "jouleserve_requests_in_flight": (GAUGE, (), "Requests accepted and not answered yet."),
    "jouleserve_replicas": (GAUGE, (), "Replicas that report to this node."),
    "jouleserve_serving_processes": (GAUGE, (), "Processes of the serving tree."),
    "jouleserve_grid_intensity_grams_per_kwh": (
        GAUGE,
        ("zone", "provider", "kind"),
        "Average carbon intensity of the grid in force.",
    ),
    "jouleserve_grid_age_seconds": (GAUGE, (), "Age of that reading."),
    "jouleserve_dial_info": (GAUGE, ("point", "policy"), "The operating point in force for standard requests."),
    "jouleserve_dial_switches": (COUNTER, (), "How often the dial was turned."),
    "jouleserve_power_usage_effectiveness_ratio": (GAUGE, (), "PUE that the grams are multiplied by."),
    "jouleserve_build_info": (GAUGE, ("version",), "The release that runs."),
}
"""Name (counters without `_total`) to kind, labels and help."""


@dataclass
class Books:
    """All that a scrape shows, as it is at that moment."""

    ledger: Ledger
    totals: ServingTotals
    pending_uj: int = 0
    uncertainty: dict[str, float] = field(default_factory=dict)
    missing_ticks: dict[tuple[Domain, str], int] = field(default_factory=dict)
    unmetered_uj: dict[tuple[Domain, str], int] = field(default_factory=dict)
    joules_per_cpu_second: float | None = None
    meter_cpu_seconds: float = 0.0
    gauges: dict[str, float] = field(default_factory=dict)
    """Sums over the replicas, by the names in `wire.GAUGES`."""
    replicas: int = 0
    processes: int = 0
    grid: GridState | None = None
    grams_per_kwh: float | None = None
    grid_age_s: float | None = None
    pue: float = 1.0
    startup: StartUp | None = None


def build_version() -> str:
    """The installed release, or `unknown` in a bare source tree."""
    try:
        return metadata.version("jouleserve")
    except metadata.PackageNotFoundError:
        return "unknown"


class NodeCollector(Collector):
    """Turns the books into metric families."""

    def __init__(self, books: Books, version: str) -> None:
        """`books` is what the scrape shows."""
        self._books = books
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """Every metric of the table that has a figure; what is unknown is absent."""
        families = {name: _family(name) for name in METRICS}
        self._energy(families)
        self._meter(families)
        self._serving(families)
        self._surroundings(families)
        yield from (family for family in families.values() if family.samples)

    def _energy(self, families: dict[str, Metric]) -> None:
        ledger = self._books.ledger
        for domain, uj in ledger.metered_uj.items():
            _add(families, "jouleserve_energy_joules", _joules(uj), domain.name, domain.device, domain.source)
        for domain, uj in ledger.idle_uj.items():
            _add(families, "jouleserve_idle_joules", _joules(uj), domain.name, domain.device, domain.source)
        attributed: dict[tuple[str, str, str, str, str], int] = {}
        owed = {(one, source): 0 for account, source in ledger.attributed_uj for one in _may_come(account)}
        for (account, source), uj in {**owed, **ledger.attributed_uj}.items():
            owner = (account.model, account.variant, account.quality, account.outcome, source)
            attributed[owner] = attributed.get(owner, 0) + uj
        for owner, uj in attributed.items():
            _add(families, "jouleserve_attributed_joules", _joules(uj), *owner)
        _add(families, "jouleserve_unattributed_joules", _joules(ledger.overhead_uj), OVERHEAD)
        for reason, uj in ledger.other_uj.items():
            _add(families, "jouleserve_unattributed_joules", _joules(uj), reason)
        for reason, uj in ledger.avoided_uj.items():
            _add(families, "jouleserve_energy_avoided_joules", _joules(uj), reason)
        for grams_key, grams in ledger.grams.items():
            _add(families, "jouleserve_carbon_grams", grams, *grams_key)
        family = families["jouleserve_request_energy_joules"]
        assert isinstance(family, HistogramMetricFamily)
        for pair, histogram in ledger.request_energy.items():
            buckets = _cumulative([str(bound) for bound in ENERGY_BOUNDS_JOULES], histogram.counts)
            family.add_metric(list(pair), buckets, _joules(histogram.sum_uj))

    def _meter(self, families: dict[str, Metric]) -> None:
        books = self._books
        conservation = books.ledger.conservation(books.pending_uj)
        _add(families, "jouleserve_energy_conservation_error_ratio", conservation.error_ratio)
        for source, ratio in books.uncertainty.items():
            _add(families, "jouleserve_energy_relative_uncertainty_ratio", ratio, source)
        for (domain, reason), ticks in books.missing_ticks.items():
            labels = (domain.name, domain.device, domain.source, reason)
            _add(families, "jouleserve_energy_missing_readings", ticks, *labels)
        for (domain, reason), uj in books.unmetered_uj.items():
            labels = (domain.name, domain.device, domain.source, reason)
            _add(families, "jouleserve_unmetered_joules", _joules(uj), *labels)
        if books.joules_per_cpu_second is not None:
            _add(families, "jouleserve_dynamic_joules_per_cpu_second", books.joules_per_cpu_second)
        if books.startup is not None and books.startup.cpu_seconds is not None:
            _add(families, "jouleserve_startup_cpu_seconds", books.startup.cpu_seconds)
        if books.startup is not None and books.startup.joules is not None:
            _add(families, "jouleserve_startup_joules", books.startup.joules)
        totals = books.totals
        _add(families, "jouleserve_meter_cpu_seconds", books.meter_cpu_seconds)
        _add(families, "jouleserve_late_records", totals.late_records)
        _add(families, "jouleserve_bad_records", totals.bad_records)
        _add(families, "jouleserve_unmeasured_cpu_seconds", _seconds(totals.unmeasured_cpu_ns))
        _add(families, "jouleserve_dropped_claim_cpu_seconds", _seconds(totals.dropped_cpu_ns))

    def _serving(self, families: dict[str, Metric]) -> None:
        books, totals = self._books, self._books.totals
        shed = dict.fromkeys(QUALITIES, 0)
        expected = {one: 0 for account in totals.requests for one in _may_come(account)}
        for account, count in {**expected, **totals.requests}.items():
            _add(families, "jouleserve_requests", count, *account)
            if account.outcome == "shed":
                shed[account.quality] = shed.get(account.quality, 0) + count
        for quality, count in shed.items():
            _add(families, "jouleserve_shed_requests", count, quality)
        for phase in PHASES:
            if histogram := totals.histograms.get(phase):
                _add_histogram(families, "jouleserve_request_duration_seconds", phase, histogram, phase)
        for name in ("batch_rows", "batch_tokens"):
            if histogram := totals.histograms.get(name):
                _add_histogram(families, f"jouleserve_{name}", name, histogram)
        counters = totals.counters
        for name in _COUNTED:
            _add(families, f"jouleserve_{name}", counters.get(name, 0))
        _add(families, "jouleserve_batch_real_tokens", counters.get("tokens", 0))
        if padded := counters.get("padded_tokens", 0):
            _add(families, "jouleserve_padding_share_ratio", 1 - counters.get("tokens", 0) / padded)
        _add(families, "jouleserve_cache_size_bytes", books.gauges.get("cache_bytes", 0.0))
        _add(families, "jouleserve_cache_entries", books.gauges.get("cache_entries", 0.0))
        _add(families, "jouleserve_queue_depth", books.gauges.get("queue_depth", 0.0))
        _add(families, "jouleserve_requests_in_flight", books.gauges.get("in_flight", 0.0))
        _add(families, "jouleserve_replicas", books.replicas)

    def _surroundings(self, families: dict[str, Metric]) -> None:
        books, grid = self._books, self._books.grid
        if grid is not None:
            if books.grams_per_kwh is not None:
                labels = (grid.zone, grid.provider, grid.kind)
                _add(families, "jouleserve_grid_intensity_grams_per_kwh", books.grams_per_kwh, *labels)
            if books.grid_age_s is not None:
                _add(families, "jouleserve_grid_age_seconds", books.grid_age_s)
            if grid.dial_point:
                _add(families, "jouleserve_dial_info", 1, grid.dial_point, grid.policy)
            _add(families, "jouleserve_dial_switches", grid.switches_total)
        _add(families, "jouleserve_serving_processes", books.processes)
        _add(families, "jouleserve_power_usage_effectiveness_ratio", books.pue)
        _add(families, "jouleserve_build_info", 1, self._version)


def render(books: Books, accept: str, version: str) -> tuple[bytes, str]:
    """The exposition and its content type, OpenMetrics if `accept` asks for it."""
    registry = CollectorRegistry()
    # Registered without describing: the families are unknown before the books are read.
    registry.register(NodeCollector(books, version))
    encoder, content_type = choose_encoder(accept)
    data: bytes = encoder(registry)
    return data, content_type


def _may_come(account: Account) -> Iterator[Account]:
    """Who answered may also fail: its series stand at 0 from the beginning, as a rate over a series that begins with
    its first failure does not see that failure."""
    if account.point:
        for outcome in FAILURES:
            yield account._replace(outcome=outcome)


def _family(name: str) -> Metric:
    kind, labels, text = METRICS[name]
    if kind == COUNTER:
        return CounterMetricFamily(name, text, labels=labels)
    if kind == GAUGE:
        return GaugeMetricFamily(name, text, labels=labels)
    return HistogramMetricFamily(name, text, labels=labels)


def _add(families: dict[str, Metric], name: str, value: float, *labels: str) -> None:
    family = families[name]
    assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
    family.add_metric(list(labels), value)


def _add_histogram(families: dict[str, Metric], name: str, kind: str, histogram: Histogram, *labels: str) -> None:
    family = families[name]
    assert isinstance(family, HistogramMetricFamily)
    bounds, scale = HISTOGRAMS[kind], NANOSECONDS_PER_SECOND if kind in PHASES else 1
    counts = [histogram.buckets.get(index, 0) for index in range(len(bounds) + 1)]
    names = [str(bound / scale) for bound in bounds]
    family.add_metric(list(labels), _cumulative(names, counts), histogram.total / scale)


def _cumulative(bounds: list[str], counts: list[int]) -> list[tuple[str, float]]:
    rows, total = [], 0
    for bound, count in zip([*bounds, "+Inf"], counts, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows


def _joules(uj: int) -> float:
    return uj / MICROJOULES_PER_JOULE


def _seconds(ns: int) -> float:
    return ns / NANOSECONDS_PER_SECOND
