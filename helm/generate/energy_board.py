"""The dashboard *Energy*, for whoever runs the server."""

from __future__ import annotations

from helm.generate.panels import ANSWERED, MACHINE, PER_REQUEST, Bars, Board, Panel, Query, grown, quantile, rate

PER_TEXT = "jouleserve_request_energy_joules"
OWNER = ("variant", "class")
SIZE = ("variant", "rows")

ENERGY = Board(
    "jouleserve-energy",
    "JouleServe / Energy",
    "Where the joules go. Every figure names its source: rapl and nvml are measured, estimated is what its name says.",
    (
        (
            "Power",
            (
                Panel(
                    "Power by domain",
                    "Metered watts. Domains psys, core and uncore overlap package: do not add them to it.",
                    "watt",
                    (Query(rate("jouleserve_energy_joules_total", ("domain", "source")), "{{domain}} ({{source}})"),),
                ),
                Panel(
                    "Where the watts go",
                    "Idling, answering, and what no request owes. Together they are the meter's.",
                    "watt",
                    (
                        Query(rate("jouleserve_idle_joules_total", labels=MACHINE), "idle"),
                        Query(rate("jouleserve_attributed_joules_total"), "answers"),
                        Query(rate("jouleserve_unattributed_joules_total", ("reason",)), "{{reason}}"),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Idle share",
                    "What the machine would have drawn anyway. High at low rates: edge mode, or fewer machines.",
                    "percentunit",
                    (
                        Query(
                            f"{rate('jouleserve_idle_joules_total', labels=MACHINE)}"
                            f" / ({rate('jouleserve_energy_joules_total', labels=MACHINE)} > 0)",
                            "idle",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Joules per request",
            (
                Panel(
                    "Median by variant and class",
                    "Dynamic joules of a request, cache hits among them; within the bounds of a bucket (1, 2, 5, …).",
                    "joule",
                    (Query(quantile(0.5, PER_TEXT, OWNER), "{{variant}} {{class}}"),),
                ),
                Panel(
                    "99th percentile by variant and class",
                    "Dynamic joules that one request in a hundred exceeds.",
                    "joule",
                    (Query(quantile(0.99, PER_TEXT, OWNER), "{{variant}} {{class}}"),),
                ),
                Panel(
                    "Mean by variant and class",
                    "Dynamic joules of a computed answer.",
                    "joule",
                    (
                        Query(
                            f"{rate('jouleserve_attributed_joules_total', OWNER, ANSWERED)}"
                            f" / ({rate('jouleserve_requests_total', OWNER, ANSWERED)} > 0)",
                            "{{variant}} {{class}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Batching, idling and what was avoided",
            (
                Panel(
                    "Joules a text by batch size",
                    "What running the model cost a text in batches of 1, 2, up to 4, 8, 16, … texts, over all the time"
                    " shown: CPU time at the joules of a CPU-second now. Bigger is cheaper until padding eats it.",
                    "joule",
                    (
                        Query(
                            f"{grown('jouleserve_batch_cpu_seconds_total', SIZE)}"
                            f" / ({grown('jouleserve_batch_texts_total', SIZE)} > 0)"
                            " * scalar(avg(jouleserve_dynamic_joules_per_cpu_second))",
                            "{{variant}}",
                        ),
                    ),
                    bars=Bars("rows", "variant"),
                ),
                Panel(
                    "Dynamic and fully loaded",
                    "Fully loaded includes idling, overhead and cooling (PUE).",
                    "joule",
                    (
                        Query(f"{rate('jouleserve_attributed_joules_total')} / {PER_REQUEST}", "dynamic"),
                        Query(f"{rate('jouleserve_loaded_joules_total')} / {PER_REQUEST}", "fully loaded"),
                    ),
                ),
                Panel(
                    "Avoided, by why",
                    "Joules a second that were not spent. Estimates that overlap: they are not added, nor subtracted.",
                    "watt",
                    (Query(rate("jouleserve_energy_avoided_joules_total", ("reason",)), "{{reason}}"),),
                ),
            ),
        ),
        (
            "How far to trust it",
            (
                Panel(
                    "Conservation error",
                    "Joules in no book, as a share of the metered ones. Above 0.1 % an alert fires.",
                    "percentunit",
                    (Query("max(jouleserve_energy_conservation_error_ratio)", "error"),),
                ),
                Panel(
                    "Estimated against measured",
                    "Watts by source.",
                    "watt",
                    (Query(rate("jouleserve_energy_joules_total", ("source",), MACHINE), "{{source}}"),),
                    stacked=True,
                ),
                Panel(
                    "Error bands",
                    "Half width of each source's band: of all its joules, and of those above idling.",
                    "percentunit",
                    (
                        Query("max by (source) (jouleserve_energy_relative_uncertainty_ratio)", "{{source}}"),
                        Query(
                            "max by (source) (jouleserve_dynamic_relative_uncertainty_ratio)", "{{source}} above idling"
                        ),
                    ),
                ),
                Panel(
                    "Gaps and the meter's own cost",
                    "Counters without a figure, records that came late, and cores that metering takes.",
                    "short",
                    (
                        Query("sum(jouleserve_energy_domain_missing)", "counters missing"),
                        Query(rate("jouleserve_late_records_total"), "late records a second"),
                        Query(rate("jouleserve_meter_cpu_seconds_total"), "meter, cores"),
                    ),
                ),
            ),
        ),
    ),
)
