"""The dashboard *Carbon*, for whoever answers for the footprint."""

from __future__ import annotations

from helm.generate.panels import (
    ANSWERED,
    GRAMS,
    GRAMS_UNIT,
    INTENSITY_UNIT,
    KNOWN,
    MACHINE,
    OWN,
    PER_REQUEST,
    Board,
    Panel,
    Query,
    rate,
    told,
)

ATTRIBUTED = '{scope="attributed"}'
"""The grams of the same joules that requests owe: idling and other programs have their own."""

CARBON = Board(
    "jouleserve-carbon",
    "JouleServe / Carbon",
    "What the service emits and what shaping saves. Average, location-based intensity; grams include cooling (PUE) and"
    " the machine's idling, and leave out what other programs draw. Shown while the grid's intensity is known.",
    (
        (
            "Now",
            (
                Panel(
                    "Per 1,000 requests",
                    "Operational gCO2e. `jouleserve report` adds embodied emissions, boundary and uncertainty.",
                    GRAMS_UNIT,
                    (Query(f"1000 * {GRAMS} / {PER_REQUEST}", "gCO2e"),),
                    True,
                ),
                Panel("Emitted an hour", "gCO2e.", GRAMS_UNIT, (Query(f"3600 * {GRAMS}", "gCO2e"),), True),
                Panel(
                    "Intensity",
                    "gCO2e per kWh in force.",
                    INTENSITY_UNIT,
                    (Query(told("jouleserve_grid_intensity_grams_per_kwh"), "intensity"),),
                    True,
                ),
                Panel("Its age", "Of that reading.", "s", (Query(told("jouleserve_grid_age_seconds"), "age"),), True),
                Panel(
                    "Step of the ladder",
                    "0 is the provider's own reading, 1 a cached one, 2 a forecast, 3 a usual week, 4 nothing.",
                    "short",
                    (Query(told("jouleserve_grid_step"), "step"),),
                    True,
                ),
                Panel(
                    "Point in force",
                    "What answers standard requests, and the policy that chose it.",
                    "short",
                    (Query(told("jouleserve_dial_info", ("point", "policy")), "{{point}} by {{policy}}"),),
                    single=True,
                    named=True,
                ),
            ),
        ),
        (
            "Grid and dial",
            (
                Panel(
                    "Intensity",
                    "Live, or the step of the ladder that stands in for it.",
                    INTENSITY_UNIT,
                    (
                        Query(
                            told("jouleserve_grid_intensity_grams_per_kwh", ("zone", "provider", "kind")),
                            "{{zone}} {{provider}} {{kind}}",
                        ),
                    ),
                ),
                Panel(
                    "Ladder and dial",
                    "Step 0 is the provider's own reading, 4 nothing; the dial is 0 at full quality and 1 at the"
                    " cheapest point.",
                    "short",
                    (
                        Query(told("jouleserve_grid_step"), "step of the ladder"),
                        Query(told("jouleserve_dial_level_ratio"), "dial"),
                    ),
                ),
                Panel(
                    "Switches",
                    "Turns of the dial in an hour. Clients see each.",
                    "short",
                    (Query("max(increase(jouleserve_dial_switches_total[1h]))", "an hour"),),
                ),
            ),
        ),
        (
            "Quality over the grid",
            (
                Panel(
                    "Variant share",
                    "Of the computed answers: compare with the intensity beside it.",
                    "percentunit",
                    (
                        Query(
                            f"{rate('jouleserve_requests_total', ('variant',), ANSWERED)}"
                            " / ignoring (variant) group_left ()"
                            f" ({rate('jouleserve_requests_total', (), ANSWERED)} > 0)",
                            "{{variant}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Intensity of the joules spent",
                    "gCO2e per kWh that answering was charged, cooling left out; below the grid's own mean, work moved"
                    " to cleaner hours.",
                    INTENSITY_UNIT,
                    (
                        Query(
                            f"3600000 * {rate('jouleserve_carbon_grams_total', labels=ATTRIBUTED)}"
                            f" / ({rate('jouleserve_attributed_joules_total')} > 0)"
                            f" / scalar(max(jouleserve_power_usage_effectiveness_ratio)) {KNOWN}",
                            "answers",
                        ),
                        Query(told("jouleserve_grid_intensity_grams_per_kwh"), "grid"),
                    ),
                ),
            ),
        ),
        (
            "Emitted and saved",
            (
                Panel(
                    "Emitted an hour",
                    "gCO2e of requests by variant, and of idling and overhead that no request owes.",
                    GRAMS_UNIT,
                    (
                        Query(
                            f"3600 * {rate('jouleserve_carbon_grams_total', ('scope', 'variant'), OWN)} {KNOWN}",
                            "{{scope}} {{variant}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Saved an hour",
                    "gCO2e by efficiency (fewer joules, at any hour) and timing (falling back in dirtier hours) apart.",
                    GRAMS_UNIT,
                    (
                        Query(
                            f"3600 * {rate('jouleserve_carbon_saved_grams_total', ('mechanism',))} {KNOWN}",
                            "{{mechanism}}",
                        ),
                    ),
                ),
                Panel(
                    "Budget",
                    "Spent share beside the share of the period that has passed; under the policy budget alone.",
                    "percentunit",
                    (
                        Query(told("jouleserve_budget_spent_ratio"), "spent"),
                        Query(told("jouleserve_budget_elapsed_ratio"), "passed"),
                    ),
                ),
            ),
        ),
        (
            "Footprint",
            (
                Panel(
                    "SCI, operational",
                    "gCO2e per request (ISO/IEC 21031: operational part, idling included, over the functional unit).",
                    GRAMS_UNIT,
                    (Query(f"{GRAMS} / {PER_REQUEST}", "a request"),),
                ),
                Panel(
                    "Energy of the day",
                    "kWh of the machines in 24 hours, idling included.",
                    "kwatth",
                    (Query(f"sum(increase(jouleserve_energy_joules_total{MACHINE}[1d])) / 3.6e6", "kWh"),),
                ),
                Panel(
                    "Cooling",
                    "Power usage effectiveness that the grams are multiplied by.",
                    "short",
                    (Query("max(jouleserve_power_usage_effectiveness_ratio)", "PUE"),),
                ),
            ),
        ),
    ),
)
