"""The exposition: a collector that fills the table of metrics from the node's books at scrape time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as ShownExemplar

from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain
from energy.ledger import ENERGY_BOUNDS_JOULES, OVERHEAD, Account, Ledger
from energy.meter import DISBELIEVED
from server.node.grid_state import REFUSALS, GridState
from server.node.hours import Series, series
from server.node.jobs_state import JobsState
from server.node.metric_table import COUNTER, GAUGE, METRICS
from server.node.model_file import CompileCost
from server.node.startup import StartUp
from server.node.totals import ServingTotals
from server.node.wire import BATCH_BOUNDS, FAILURES, HISTOGRAMS, PHASES, QUALITIES, Exemplar, Histogram

_COUNTED = ("cache_hits", "cache_misses", "cache_l2_hits", "cache_l2_misses", "cache_l2_errors", "escalations")


@dataclass
class Books:
    """All that a scrape shows, as it is at that moment."""

    ledger: Ledger
    totals: ServingTotals
    pending_uj: int = 0
    uncertainty: dict[str, float] = field(default_factory=dict)
    dynamic_uncertainty: dict[str, float] = field(default_factory=dict)
    recent_error_ratio: float = 0.0
    """Conservation error of the last five minutes alone."""
    missing_ticks: dict[tuple[Domain, str], int] = field(default_factory=dict)
    missing_now: dict[Domain, bool] = field(default_factory=dict)
    """Whether a counter gives no figure at present."""
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
    write_failures: int = 0
    free_bytes: int | None = None
    """Free where the totals are kept."""
    compiled: tuple[CompileCost, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()
    jobs: JobsState | None = None


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
        self._loaded(families)
        for reason, uj in ledger.avoided_uj.items():
            _add(families, "jouleserve_energy_avoided_joules", _joules(uj), reason)
        for mechanism, grams in ledger.carbon.shown_grams.items():
            _add(families, "jouleserve_carbon_saved_grams", grams, mechanism)
        for grams_key, grams in ledger.grams.items():
            _add(families, "jouleserve_carbon_grams", grams, *grams_key)
        family = families["jouleserve_request_energy_joules"]
        assert isinstance(family, HistogramMetricFamily)
        rate = self._books.joules_per_cpu_second or 0.0
        for kind, histogram in ledger.request_energy.items():
            mine = [one for one in self._books.exemplars if (one.variant, one.quality) == kind[1:]]
            traced = [(rate * _seconds(one.cpu_ns), one) for one in mine]
            buckets = _cumulative([str(bound) for bound in ENERGY_BOUNDS_JOULES], histogram.counts)
            shown = _with_exemplars(buckets, ENERGY_BOUNDS_JOULES, traced)
            family.add_metric(list(kind), shown, _joules(histogram.sum_uj))

    def _loaded(self, families: dict[str, Metric]) -> None:
        ledger = self._books.ledger
        loaded: dict[tuple[str, str, str, str, str], int] = {}
        for (account, source), uj in ledger.loaded_uj.items():
            owner = (account.model, account.variant, account.quality, account.outcome, source)
            loaded[owner] = loaded.get(owner, 0) + uj
        for owner, uj in loaded.items():
            _add(families, "jouleserve_loaded_joules", _joules(uj), *owner)
        for source, uj in ledger.unloaded_uj.items():
            _add(families, "jouleserve_unloaded_joules", _joules(uj), source)

    def _meter(self, families: dict[str, Metric]) -> None:
        books = self._books
        conservation = books.ledger.conservation(books.pending_uj)
        worst = max(conservation.error_ratio, books.recent_error_ratio)
        _add(families, "jouleserve_energy_conservation_error_ratio", worst)
        for source, ratio in books.uncertainty.items():
            _add(families, "jouleserve_energy_relative_uncertainty_ratio", ratio, source)
        for source, ratio in books.dynamic_uncertainty.items():
            _add(families, "jouleserve_dynamic_relative_uncertainty_ratio", ratio, source)
        for (domain, reason), ticks in books.missing_ticks.items():
            why = (domain.name, domain.device, domain.source, reason)
            _add(families, "jouleserve_energy_missing_readings", ticks, *why)
        for domain, missing in books.missing_now.items():
            labels = (domain.name, domain.device, domain.source)
            _add(families, "jouleserve_energy_domain_missing", float(missing), *labels)
        # At 0 from the beginning: an alert on what they grow by would not see a first step.
        unbelieved = {(domain, reason): 0 for domain in books.missing_now for reason in DISBELIEVED}
        for (domain, reason), uj in {**unbelieved, **books.unmetered_uj}.items():
            why = (domain.name, domain.device, domain.source, reason)
            _add(families, "jouleserve_unmetered_joules", _joules(uj), *why)
        if books.joules_per_cpu_second is not None:
            _add(families, "jouleserve_dynamic_joules_per_cpu_second", books.joules_per_cpu_second)
        if books.startup is not None and books.startup.cpu_seconds is not None:
            _add(families, "jouleserve_startup_cpu_seconds", books.startup.cpu_seconds)
        if books.startup is not None and books.startup.joules is not None:
            _add(families, "jouleserve_startup_joules", books.startup.joules)
        for cost in books.compiled:
            if cost.joules is not None:
                _add(families, "jouleserve_compile_joules", cost.joules, cost.model, cost.variant)
            if cost.cpu_seconds is not None:
                _add(families, "jouleserve_compile_cpu_seconds", cost.cpu_seconds, cost.model, cost.variant)
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
                traced = books.exemplars if phase == "total" else ()
                _add_histogram(families, "jouleserve_request_duration_seconds", phase, histogram, phase, traced=traced)
        for name in ("batch_rows", "batch_tokens"):
            if histogram := totals.histograms.get(name):
                _add_histogram(families, f"jouleserve_{name}", name, histogram)
        for key, batches in totals.batches.items():
            size = (key.variant, str(BATCH_BOUNDS[key.size]) if key.size < len(BATCH_BOUNDS) else "+Inf")
            _add(families, "jouleserve_batch_texts", batches.texts, *size)
            _add(families, "jouleserve_batch_cpu_seconds", _seconds(batches.cpu_ns), *size)
        counters = totals.counters
        for name in _COUNTED:
            _add(families, f"jouleserve_{name}", counters.get(name, 0))
        _add(families, "jouleserve_load_spike_overrides", counters.get("spike_overrides", 0))
        _add(families, "jouleserve_latency_guarded", counters.get("latency_guarded", 0))
        _add(families, "jouleserve_batch_real_tokens", counters.get("tokens", 0))
        if padded := counters.get("padded_tokens", 0):
            _add(families, "jouleserve_padding_share_ratio", 1 - counters.get("tokens", 0) / padded)
        _add(families, "jouleserve_cache_size_bytes", books.gauges.get("cache_bytes", 0.0))
        _add(families, "jouleserve_cache_entries", books.gauges.get("cache_entries", 0.0))
        _add(families, "jouleserve_queue_depth", books.gauges.get("queue_depth", 0.0))
        _add(families, "jouleserve_requests_in_flight", books.gauges.get("in_flight", 0.0))
        _add(families, "jouleserve_replicas", books.replicas)
        _add(families, "jouleserve_version_refused_replicas", books.gauges.get("version_refused", 0.0))

    def _surroundings(self, families: dict[str, Metric]) -> None:
        books, grid = self._books, self._books.grid
        if grid is not None:
            if books.grams_per_kwh is not None:
                labels = (grid.zone, grid.provider, grid.kind)
                _add(families, "jouleserve_grid_intensity_grams_per_kwh", books.grams_per_kwh, *labels)
            if books.grid_age_s is not None:
                _add(families, "jouleserve_grid_age_seconds", books.grid_age_s)
            _add(families, "jouleserve_grid_step", grid.step)
            if grid.dial_level is not None:
                _add(families, "jouleserve_dial_level_ratio", grid.dial_level)
            if grid.budget_spent_ratio is not None and grid.budget_elapsed_ratio is not None:
                _add(families, "jouleserve_budget_spent_ratio", grid.budget_spent_ratio)
                _add(families, "jouleserve_budget_elapsed_ratio", grid.budget_elapsed_ratio)
            for reason in dict.fromkeys((*REFUSALS, *grid.refused)):
                _add(families, "jouleserve_grid_refused", grid.refused.get(reason, 0), grid.provider, reason)
            if grid.dial_point:
                _add(families, "jouleserve_dial_info", 1, grid.dial_point, grid.policy)
            _add(families, "jouleserve_dial_switches", grid.switches_total)
        if books.jobs is not None:
            self._jobs(families, books.jobs)
        _add(families, "jouleserve_serving_processes", books.processes)
        _add(families, "jouleserve_state_write_failures", books.write_failures)
        if books.free_bytes is not None:
            _add(families, "jouleserve_state_free_bytes", books.free_bytes)
        _add(families, "jouleserve_power_usage_effectiveness_ratio", books.pue)
        _add(families, "jouleserve_build_info", 1, self._version)

    def _jobs(self, families: dict[str, Metric], jobs: JobsState) -> None:
        _add(families, "jouleserve_jobs", jobs.waiting, "waiting")
        _add(families, "jouleserve_jobs", jobs.running, "running")
        _add(families, "jouleserve_jobs_ended", jobs.done - jobs.late, "in_time")
        _add(families, "jouleserve_jobs_ended", jobs.late, "late")
        _add(families, "jouleserve_jobs_ended", jobs.cancelled, "cancelled")
        _add(families, "jouleserve_jobs_texts", jobs.texts)
        _add(families, "jouleserve_jobs_joules", jobs.joules)
        _add(families, "jouleserve_jobs_carbon_grams", jobs.grams, "as_run")
        _add(families, "jouleserve_jobs_carbon_grams", jobs.grams_at_once, "at_once")


def counters_of(books: Books, version: str) -> dict[Series, float]:
    """Every counter of the exposition, by the name that queries use."""
    return {
        series(sample.name, sample.labels): sample.value
        for family in NodeCollector(books, version).collect()
        if family.type == COUNTER
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def render(books: Books, accept: str, version: str) -> tuple[bytes, str]:
    """The exposition and its content type, OpenMetrics if `accept` asks for it; text if it cannot be understood."""
    registry = CollectorRegistry()
    # Registered without describing: the families are unknown before the books are read.
    registry.register(NodeCollector(books, version))
    try:
        encoder, content_type = choose_encoder(accept)
    except TypeError:  # a version that is no number
        encoder, content_type = choose_encoder("")
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


def _add_histogram(
    families: dict[str, Metric],
    name: str,
    kind: str,
    histogram: Histogram,
    *labels: str,
    traced: tuple[Exemplar, ...] = (),
) -> None:
    family = families[name]
    assert isinstance(family, HistogramMetricFamily)
    bounds, scale = HISTOGRAMS[kind], NANOSECONDS_PER_SECOND if kind in PHASES else 1
    counts = [histogram.buckets.get(index, 0) for index in range(len(bounds) + 1)]
    tops = [bound / scale for bound in bounds]
    buckets = _cumulative([str(top) for top in tops], counts)
    shown = _with_exemplars(buckets, tops, [(_seconds(exemplar.total_ns), exemplar) for exemplar in traced])
    family.add_metric(list(labels), shown, histogram.total / scale)


def _with_exemplars(
    buckets: list[tuple[str, float]], tops: Sequence[float], traced: Sequence[tuple[float, Exemplar]]
) -> list[tuple[str, float] | tuple[str, float, ShownExemplar]]:
    """The newest traced request in each bucket; `traced` holds their values in the histogram's unit."""
    newest: dict[int, ShownExemplar] = {}
    for value, exemplar in sorted(traced, key=lambda pair: pair[1].time_s):
        shown = ShownExemplar({"trace_id": exemplar.trace_id}, value, exemplar.time_s)
        newest[bisect_left(tops, value)] = shown
    return [
        (top, count, newest[index]) if index in newest else (top, count) for index, (top, count) in enumerate(buckets)
    ]


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
