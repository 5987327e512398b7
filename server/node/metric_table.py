"""The table of metrics: name, kind, labels and meaning of everything on `/metrics`, and the document made of it.

python -m server.node.metric_table > docs/metrics.md
"""

from __future__ import annotations

import sys

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
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
    "jouleserve_loaded_joules": (
        COUNTER,
        _ACCOUNT,
        "The same requests fully loaded: dynamic energy, a share of idling and overhead by it, times PUE. What hours"
        " without requests drew is laid on later requests over about an hour of serving.",
    ),
    "jouleserve_unloaded_joules": (
        GAUGE,
        ("source",),
        "Idling and overhead of times without requests that no request has been loaded with yet.",
    ),
    "jouleserve_unattributed_joules": (
        COUNTER,
        ("reason",),
        "Dynamic energy that no request owes: overhead of serving, other_processes, late_record, unclaimed_device (a"
        " GPU's that no request kept busy), no_cpu_time (nobody was seen to compute), lost_at_restart (of a window"
        " that was open when the node process was killed).",
    ),
    "jouleserve_request_energy_joules": (
        HISTOGRAM,
        ("model", "variant", "class"),
        "Dynamic energy of a request, by what answered it. 25 series each (23 buckets, sum, count): with three variants"
        " and the three classes at most 225.",
    ),
    "jouleserve_energy_avoided_joules": (
        COUNTER,
        ("reason",),
        "Energy that was not spent, by why: cache, batching (over one text at a time), fallback (over full quality),"
        " spike (the same, where a spike in load moved the text to a cheaper point), quantized (over full precision)."
        " Estimates, counted apart, never subtracted; they overlap: do not add them.",
    ),
    "jouleserve_carbon_grams": (
        COUNTER,
        ("scope", "model", "variant"),
        "gCO2e of the energy at the grid's average intensity of its time, cooling (PUE) included. All scopes are the"
        " service's (attributed, idle, overhead, late_record) but other, which other programs owe.",
    ),
    "jouleserve_carbon_saved_grams": (
        COUNTER,
        ("mechanism",),
        "gCO2e of the avoided energy, of every reason against its own counterfactual: efficiency (fewer joules, at"
        " any hour), timing (by falling back in hours dirtier than the trailing four weeks' mean; where they are"
        " cleaner it pays that back before it grows again).",
    ),
    "jouleserve_energy_conservation_error_ratio": (
        GAUGE,
        (),
        "Joules lost or invented between the meters' counters and the books, as a share of the metered ones: the larger"
        " of all time's and the last five minutes'. Alert above 0.001.",
    ),
    "jouleserve_energy_relative_uncertainty_ratio": (
        GAUGE,
        ("source",),
        "Half width of the error band of the source's joules, whichever they are.",
    ),
    "jouleserve_dynamic_relative_uncertainty_ratio": (
        GAUGE,
        ("source",),
        "The same for the joules above idling alone, which requests owe.",
    ),
    "jouleserve_energy_missing_readings": (
        COUNTER,
        ("domain", "device", "source", "reason"),
        "Ticks in which a counter gave no figure: unreadable, frozen, gap (it may have wrapped unseen), reset, jump"
        " (beyond ten times all before, and not confirmed so far), implausible (more than the device can draw, or less"
        " than nothing).",
    ),
    "jouleserve_energy_domain_missing": (
        GAUGE,
        ("domain", "device", "source"),
        "1 while a counter gives no figure (unreadable, frozen, absurd), else 0. Alert while it is 1.",
    ),
    "jouleserve_unmetered_joules": (
        COUNTER,
        ("domain", "device", "source", "reason"),
        "What a counter showed over a gap, a reset, a jump or an implausible step, which nobody can vouch for: it may"
        " have been more or less. In no other figure.",
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
    "jouleserve_compile_joules": (
        GAUGE,
        ("model", "variant"),
        "What compiling the variant drew, once; in no other figure. Absent where it was not measured.",
    ),
    "jouleserve_compile_cpu_seconds": (GAUGE, ("model", "variant"), "CPU time that compiling the variant took."),
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
        "Texts asked for, by what answered them and how they ended: ok, cached, error, cancelled, shed (the queue was"
        " full), refused. A call with several texts counts each, one that was refused before its texts were looked at"
        " (outcome refused) counts once.",
    ),
    "jouleserve_request_duration_seconds": (
        HISTOGRAM,
        ("phase",),
        "Time by phase; infer is per batch. Texts of jobs that make way for clients are in infer alone.",
    ),
    "jouleserve_batch_rows": (HISTOGRAM, (), "Texts in a batch."),
    "jouleserve_batch_tokens": (HISTOGRAM, (), "Tokens computed in a batch, padding included."),
    "jouleserve_batch_texts": (
        COUNTER,
        ("variant", "rows"),
        "Texts that were computed, by the size of their batch: `rows` is 1, 2, or up to 4, 8, 16, …",
    ),
    "jouleserve_batch_cpu_seconds": (
        COUNTER,
        ("variant", "rows"),
        "CPU time of running those batches, tokenizing left out. Over the texts and times"
        " `jouleserve_dynamic_joules_per_cpu_second` it is what a text costs at a batch size.",
    ),
    "jouleserve_batch_real_tokens": (COUNTER, (), "Tokens of the texts themselves."),
    "jouleserve_padding_share_ratio": (GAUGE, (), "Padding among the tokens computed so far."),
    "jouleserve_shed_requests": (COUNTER, ("class",), "Texts refused because the queue was full."),
    "jouleserve_cache_hits": (COUNTER, (), "Texts answered from the cache."),
    "jouleserve_cache_misses": (COUNTER, (), "Texts that were not in the cache."),
    "jouleserve_cache_l2_hits": (COUNTER, (), "Texts found in the cache that replicas share."),
    "jouleserve_cache_l2_misses": (COUNTER, (), "Texts that were looked for there in vain."),
    "jouleserve_cache_l2_errors": (COUNTER, (), "Lookups and writes there that failed, and entries that were none."),
    "jouleserve_escalations": (COUNTER, (), "Texts that a cascade's first variant was unsure of, so that both ran."),
    "jouleserve_load_spike_overrides": (
        COUNTER,
        (),
        "Standard texts that a spike in load moved to a cheaper point than the grid asked for.",
    ),
    "jouleserve_latency_guarded": (COUNTER, (), "Texts kept off a cascade because their class was too slow."),
    "jouleserve_cache_size_bytes": (GAUGE, (), "Bytes in the caches of the replicas."),
    "jouleserve_cache_entries": (GAUGE, (), "Entries in the caches of the replicas."),
    "jouleserve_queue_depth": (GAUGE, (), "Texts that wait for a batch."),
    "jouleserve_requests_in_flight": (GAUGE, (), "Requests accepted and not answered yet."),
    "jouleserve_replicas": (GAUGE, (), "Replicas that report to this node."),
    "jouleserve_version_refused_replicas": (
        GAUGE,
        (),
        "Replicas that refused the version they were told to serve (bytes against their digests, or not to be loaded)"
        " and serve another. Alert above 0.",
    ),
    "jouleserve_state_write_failures": (
        COUNTER,
        (),
        "Times that the totals could not be written to disk since the node process began.",
    ),
    "jouleserve_state_free_bytes": (GAUGE, (), "Bytes free on the disk that the totals are kept on."),
    "jouleserve_serving_processes": (GAUGE, (), "Processes of the serving tree."),
    "jouleserve_grid_intensity_grams_per_kwh": (
        GAUGE,
        ("zone", "provider", "kind"),
        "Average carbon intensity of the grid in force.",
    ),
    "jouleserve_grid_age_seconds": (GAUGE, (), "Age of that reading."),
    "jouleserve_grid_step": (
        GAUGE,
        (),
        "Step of the ladder in force: 0 the provider's own reading, 1 cached, 2 forecast, 3 mean of the hour of the"
        " week, 4 nothing (normal quality).",
    ),
    "jouleserve_grid_refused": (
        COUNTER,
        ("provider", "reason"),
        "Looks at the grid that gave no reading of the provider's: it failed, or what it told was not to be believed.",
    ),
    "jouleserve_dial_level_ratio": (GAUGE, (), "Where the dial stands: 0 full quality, 1 cheapest point."),
    "jouleserve_budget_spent_ratio": (
        GAUGE,
        (),
        "Share of the period's grams or kWh that is spent; under the policy budget alone.",
    ),
    "jouleserve_budget_elapsed_ratio": (GAUGE, (), "Share of that period that has passed."),
    "jouleserve_dial_info": (GAUGE, ("point", "policy"), "The operating point in force for standard requests."),
    "jouleserve_dial_switches": (COUNTER, (), "How often the dial was turned."),
    "jouleserve_jobs": (GAUGE, ("state",), "Jobs that wait for their hour, and that are being computed."),
    "jouleserve_jobs_ended": (COUNTER, ("outcome",), "Jobs that were done, in time or late, or cancelled."),
    "jouleserve_jobs_texts": (COUNTER, (), "Texts of jobs that were computed."),
    "jouleserve_jobs_joules": (COUNTER, (), "Dynamic energy of the jobs' texts, provisional; part of the attributed."),
    "jouleserve_jobs_carbon_grams": (
        COUNTER,
        ("when",),
        "gCO2e of that energy: as_run in the hours it was drawn in, at_once in the hours of the submissions.",
    ),
    "jouleserve_power_usage_effectiveness_ratio": (GAUGE, (), "PUE that the grams are multiplied by."),
    "jouleserve_build_info": (GAUGE, ("version",), "The release that runs."),
}
"""Name (counters without `_total`) to kind, labels and help."""

_INTRO = """\
# Metrics

The node process serves them on `http://HOST:9400/metrics` (`server.metrics_port`), as Prometheus text or, to a scraper
that asks for it, as OpenMetrics. There, requests whose trace was recorded are exemplars of the duration and energy
histograms.
Units are base units; no label takes unbounded values. What is not measured is absent, never 0.

This table is made from the code: `python -m server.node.metric_table > docs/metrics.md`.

| metric | kind | labels | what |
|---|---|---|---|
"""


def exposed_name(name: str) -> str:
    """The name of a family as queries spell it: counters end in `_total`."""
    return f"{name}_total" if METRICS[name][0] == COUNTER else name


def to_markdown() -> str:
    """The document `docs/metrics.md`."""
    rows = [
        f"| `{exposed_name(name)}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text} |"
        for name, (kind, labels, text) in METRICS.items()
    ]
    return _INTRO + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
