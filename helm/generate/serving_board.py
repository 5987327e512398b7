"""The dashboard *Serving*, for whoever runs the server."""

from __future__ import annotations

from helm.generate.panels import ANSWERED, Board, Panel, Query, quantile, rate

SERVING = Board(
    "jouleserve-serving",
    "JouleServe / Serving",
    "How the server answers: rates, latency by phase, queue, batches, cache.",
    (
        (
            "Requests",
            (
                Panel(
                    "Texts by outcome",
                    "A call with several texts counts each.",
                    "reqps",
                    (Query(rate("jouleserve_requests_total", ("outcome",)), "{{outcome}}"),),
                    stacked=True,
                ),
                Panel(
                    "Texts by variant and class",
                    "What computed them; cached answers are left out.",
                    "reqps",
                    (
                        Query(
                            rate("jouleserve_requests_total", ("variant", "class"), ANSWERED), "{{variant}} {{class}}"
                        ),
                    ),
                ),
                Panel(
                    "Refused for want of room",
                    "429 because the queue is full, by class.",
                    "reqps",
                    (Query(rate("jouleserve_shed_requests_total", ("class",)), "{{class}}"),),
                ),
            ),
        ),
        (
            "Latency",
            (
                Panel(
                    "Median by phase",
                    "Inside the server; infer is per batch.",
                    "s",
                    (Query(quantile(0.5, "jouleserve_request_duration_seconds", ("phase",)), "{{phase}}"),),
                ),
                Panel(
                    "99th percentile by phase",
                    "Inside the server; infer is per batch.",
                    "s",
                    (Query(quantile(0.99, "jouleserve_request_duration_seconds", ("phase",)), "{{phase}}"),),
                ),
                Panel(
                    "Queue",
                    "Texts that wait for a batch, and requests that are not answered yet.",
                    "short",
                    (
                        Query("sum(jouleserve_queue_depth)", "waiting"),
                        Query("sum(jouleserve_requests_in_flight)", "in flight"),
                    ),
                ),
            ),
        ),
        (
            "Batches",
            (
                Panel(
                    "Texts per batch",
                    "Mean and 99th percentile.",
                    "short",
                    (
                        Query(
                            f"{rate('jouleserve_batch_rows_sum')} / ({rate('jouleserve_batch_rows_count')} > 0)", "mean"
                        ),
                        Query(quantile(0.99, "jouleserve_batch_rows"), "p99"),
                    ),
                ),
                Panel(
                    "Tokens per batch",
                    "Padding included.",
                    "short",
                    (
                        Query(
                            f"{rate('jouleserve_batch_tokens_sum')} / ({rate('jouleserve_batch_tokens_count')} > 0)",
                            "mean",
                        ),
                        Query(quantile(0.99, "jouleserve_batch_tokens"), "p99"),
                    ),
                ),
                Panel(
                    "Padding",
                    "Share of the computed tokens that are no text's own.",
                    "percentunit",
                    (
                        Query(
                            f"1 - {rate('jouleserve_batch_real_tokens_total')}"
                            f" / ({rate('jouleserve_batch_tokens_sum')} > 0)",
                            "padding",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Cache",
            (
                Panel(
                    "Hit share",
                    "Texts that the cache answered.",
                    "percentunit",
                    (
                        Query(
                            f"{rate('jouleserve_cache_hits_total')} / ({rate('jouleserve_cache_hits_total')}"
                            f" + {rate('jouleserve_cache_misses_total')} > 0)",
                            "hits",
                        ),
                    ),
                ),
                Panel(
                    "Cache memory",
                    "Of all replicas.",
                    "bytes",
                    (Query("sum(jouleserve_cache_size_bytes)", "bytes"),),
                ),
                Panel(
                    "Escalations",
                    "Texts of which a cascade's first variant was unsure.",
                    "reqps",
                    (Query(rate("jouleserve_escalations_total"), "escalated"),),
                ),
            ),
        ),
        (
            "Processes",
            (
                Panel("Replicas", "That report.", "short", (Query("sum(jouleserve_replicas)", "replicas"),), True),
                Panel(
                    "Replicas that refused a version",
                    "Should be 0.",
                    "short",
                    (Query("sum(jouleserve_version_refused_replicas)", "refused"),),
                    True,
                ),
                Panel(
                    "Disk free",
                    "Where the totals are kept; the least of all machines.",
                    "bytes",
                    (Query("min(jouleserve_state_free_bytes)", "free"),),
                    True,
                ),
                Panel(
                    "Release",
                    "That runs.",
                    "short",
                    (Query("max by (version) (jouleserve_build_info)", "{{version}}"),),
                    single=True,
                    named=True,
                ),
            ),
        ),
    ),
)
