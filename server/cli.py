"""The `jouleserve` command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from energy.calibration import CalibrationError
from models.store import Store, StoreError
from server.config import LoadedSettings, SettingsError, load
from server.jobs.command import app as jobs_app
from server.logs import set_up_logging
from server.replay.errors import ReplayError
from server.report.errors import ReportError
from server.shaping.audit import Entry
from server.start_error import StartError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Serve transformer models at the fewest joules per answer."
)
models_app = typer.Typer(no_args_is_help=True, help="Look at and choose published versions.")
app.add_typer(models_app, name="models")
app.add_typer(jobs_app, name="jobs")
console = Console()
errors = Console(stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: jouleserve.yaml).")]
SetOption = Annotated[list[str], typer.Option("--set", help="One setting, as section.field=value. Repeatable.")]
FamilyOption = Annotated[str | None, typer.Option("--family", help="Name of the family (model.family).")]
StoreOption = Annotated[Path | None, typer.Option("--store", help="Folder of published families (model.store).")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jouleserve {version_of('jouleserve')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the release and exit.")
    ] = False,
) -> None:
    """What every command has in common."""


def _settings(
    config: Path | None, assignments: Sequence[str], named: Mapping[str, object] | None = None
) -> LoadedSettings:
    """The settings; `named` are those that a command has options for, None where an option is not given."""
    given = {key: str(value) for key, value in (named or {}).items() if value is not None}
    return load(config, {**assignments_of(assignments), **given})


def assignments_of(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1"]` as `{"a.b": "1"}`. Raises SettingsError on a word without `=`."""
    pairs: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise SettingsError([f"{assignment}: not an assignment; write section.field=value"])
        pairs[key.strip()] = value.strip()
    return pairs


@app.command()
def up(
    family: FamilyOption = None,
    store: StoreOption = None,
    edge: Annotated[bool, typer.Option("--edge", help="One process without Ray: small machines, low rates.")] = False,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC (server.grpc_port); none by default.")] = None,
    config: ConfigOption = None,
    assign: SetOption = [],  # noqa: B006 - typer reads the default
) -> None:
    """Start the server and serve until Ctrl-C."""
    named = {"model.family": family, "model.store": store, "server.grpc_port": grpc_port}
    settings = _settings(config, assign, named).settings
    set_up_logging(settings.server.log_level)

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    if edge:
        from server.edge import run_edge

        run_edge(settings, say)
    else:
        from server.supervisor import run_supervisor

        run_supervisor(settings, say)


@app.command("config")
def show_config(config: ConfigOption = None, assign: SetOption = []) -> None:  # noqa: B006
    """Print every setting in force, where it came from and what it trades."""
    typer.echo(_settings(config, assign).explain(), nl=False)


@app.command()
def tune(
    changes: Annotated[
        list[str] | None, typer.Argument(help="section.field=value …; none shows what is in force")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Go back to before the last change.")] = False,
    to: Annotated[int | None, typer.Option(min=0, help="Go back to this version.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Show who changed what, and when.")] = False,
    family: FamilyOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    assign: SetOption = [],  # noqa: B006
) -> None:
    """Show or change settings of the running server, without a restart or a lost request; go back."""
    from server.shaping import audit, tuning
    from server.shaping.tunables import check_points

    if sum((bool(changes), undo, to is not None, history)) > 1:
        raise SettingsError(["tune: assignments, --undo, --to and --history exclude each other; give one of them"])
    wanted = assignments_of(changes or [])
    settings = _settings(config, assign, {"model.family": family, "model.store": store}).settings
    path = settings.tuning_path
    if history:
        entries = audit.read(tuning.audit_path(path))
        console.print(_history_table(entries) if entries else f"{tuning.audit_path(path)}: no server ran here yet")
        return
    in_force = tuning.load(path)
    if not wanted and not undo and to is None:
        console.print_json(data=in_force.to_user_config())
        return
    model = settings.model
    version, _ = Store(model.store).open_newest_sound(model.family, model.version)
    check = check_points(point.name for point in version.manifest.points)
    with _usable(path):
        taken = tuning.tune(path, wanted, check) if wanted else tuning.undo(path, check, to=to)
    console.print(
        f"taken as version {taken.version}: {path}; replicas follow within about two seconds. Back: jouleserve tune"
        " --undo. It lasts until the server stops; to keep it, write it into the settings file.",
        soft_wrap=True,
    )


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """What the disk refuses of the tuning file and its log is told with its remedy."""
    try:
        yield
    except OSError as error:
        remedy = "use it as the server's user, with room on its disk"
        raise SettingsError([f"{error.filename or path}: {error.strerror}; {remedy}"]) from None


def _history_table(entries: Sequence[Entry]) -> Table:
    table = Table("version", "when (UTC)", "who", "by", "changes")
    for entry in entries:
        changes = "\n".join(f"{key}: {before} -> {after}" for key, (before, after) in entry.changes.items())
        restored = "" if entry.restored is None else f"back to version {entry.restored}\n"
        table.add_row(str(entry.version), entry.time, entry.who, entry.via, restored + changes)
    return table


@app.command()
def conserve(
    since: Annotated[
        str | None, typer.Option(help="A mark that an earlier call printed: only what came after.")
    ] = None,
    config: ConfigOption = None,
    assign: SetOption = [],  # noqa: B006
) -> None:
    """Show that attributed + idle + overhead + other joules are what the meter counted."""
    from server.ledger_view import print_conservation

    raise typer.Exit(print_conservation(console, _settings(config, assign).settings.node_address, since))


@app.command("report")
def make_report(
    begin: Annotated[str, typer.Option("--from", help="First hour: a date or time, UTC.")],
    end: Annotated[str, typer.Option("--to", help="The hour that it ends before: a date or time, UTC.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and report.json.")] = Path("var/report"),
    hours: Annotated[
        Path | None, typer.Option(help="Folder of hourly totals; by default that of the run folder.")
    ] = None,
    prometheus: Annotated[str | None, typer.Option(help="URL of a Prometheus that scrapes /metrics, instead.")] = None,
    tariff: Annotated[float, typer.Option(min=0, max=1e9, help="Price of a kWh.")] = 0.30,
    currency: Annotated[str, typer.Option(help="Currency of the tariff.")] = "EUR",
    embodied_kg: Annotated[
        float | None, typer.Option(min=0, max=1e6, help="kgCO2e of the server's manufacture.")
    ] = None,
    lifespan_years: Annotated[
        float | None, typer.Option(min=0.1, max=100, help="Years that the server is used.")
    ] = None,
    resource_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the server reserved for this.")] = 1.0,
    config: ConfigOption = None,
    assign: SetOption = [],  # noqa: B006
) -> None:
    """SCI score and return on investment of a period: HTML with plots, Markdown and JSON."""
    from server.report import command

    folder = hours or _settings(config, assign).settings.node_dir / "hours"
    inputs = command.Inputs(tariff, currency, embodied_kg, lifespan_years, resource_share)
    found = command.run(folder, prometheus, begin, end, inputs, out)
    for figure in (*found.energy[-2:], *found.requests[-2:], *found.sci[-1:]):
        console.print(f"{figure.name}: {figure.value:.4g} {figure.unit} ({figure.source})", soft_wrap=True)
    console.print(f"written: {', '.join(str(out / name) for name in command.NAMES)}", soft_wrap=True)


@app.command()
def calibrate(
    watts: Annotated[
        list[str], typer.Option(help="LOAD=WATTS that is known already; repeatable, no load is run.")
    ] = [],  # noqa: B006
    watts_command: Annotated[str | None, typer.Option(help="Prints the reference's watts of the moment.")] = None,
    reference: Annotated[str, typer.Option(help="What shows the watts, for the record.")] = "a meter of the user",
    uncertainty: Annotated[float, typer.Option(min=0, max=0.9, help="The reference's own error, as a share.")] = 0.02,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Seconds at each load.")] = 30.0,
    out: Annotated[Path, typer.Option(help="Where the curve is written.")] = Path("var/calibration.json"),
) -> None:
    """Fit the energy estimate to this machine: idle, 10 %, 50 % and 100 % load beside a reference's watts."""
    import os

    from energy.coefficients import load_coefficients
    from server import calibrate as course

    def asked(load: float, span_s: float) -> float:
        console.print(f"load {load:.0%} is on; read the reference for {span_s:g} s", highlight=False)
        return float(typer.prompt("mean watts it shows", type=float))

    if watts:
        pairs = course.pairs_of(watts)
    else:
        source = asked if watts_command is None else course.watts_by_command(watts_command)
        console.print("leave the machine alone: everything else that runs spoils the points", highlight=False)
        pairs = course.measure(course.DEFAULT_LOADS, seconds, source, console.print, cpus=os.cpu_count() or 1)
    curve = course.write(pairs, reference, uncertainty, out)
    band = curve.relative_uncertainty(load_coefficients().uncertainty)
    console.print(f"written to {out}: {len(curve.points)} points, figures are good to ±{band:.0%}", soft_wrap=True)
    console.print(f"use it: energy.calibration: {out} in jouleserve.yaml, then start anew", soft_wrap=True)


@app.command()
def replay(
    grid: Annotated[
        str,
        typer.Option(
            help="CSV (or .csv.gz) of UTC times and gCO2e/kWh, or the live provider of the settings: its past."
        ),
    ],
    load: Annotated[
        str, typer.Option(help="flat, diurnal, a CSV of times and requests, or a Prometheus server's address.")
    ] = "flat",
    rate: Annotated[float, typer.Option(min=0, max=1e9, help="Mean requests a second of flat and diurnal load.")] = 1.0,
    family: FamilyOption = None,
    small_share: Annotated[
        float | None,
        typer.Option(help="Instead of a family's points: a full one, and one at this share of its joules."),
    ] = None,
    policy: Annotated[list[str], typer.Option(help="Policy to replay; repeatable.")] = [],  # noqa: B006
    sweep: Annotated[bool, typer.Option("--sweep", help="Draw the frontier over the thresholds.")] = False,
    want: Annotated[float, typer.Option(min=0, max=1, help="Share at full quality that --sweep looks for.")] = 0.5,
    utc_offset: Annotated[
        float, typer.Option(min=-14, max=14, help="Local time's offset in hours, for diurnal load.")
    ] = 0.0,
    stale_hours: Annotated[float, typer.Option(min=0, max=8784, help="Hours by which readings come late.")] = 0.0,
    outage_hours: Annotated[
        float, typer.Option(min=0, max=174, help="Hours for which the feed is dead, about once a week.")
    ] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a plot (needs matplotlib).")] = None,
    config: ConfigOption = None,
    assign: SetOption = [],  # noqa: B006
) -> None:
    """What would these settings have done? Recorded grid and load through the policies that serve."""
    from server.replay import command, frontier, report
    from server.replay.simulate import Faults
    from server.shaping.providers import limits_of

    settings = _settings(config, assign, {"model.family": family}).settings
    points = command.family_points(settings.model) if small_share is None else command.made_up_points(small_share)
    chosen = [frontier.changed(settings.shaping, policy=name) for name in policy] or [settings.shaping]
    course, figures, trials = command.run(
        grid=grid,
        load=load,
        rate=rate,
        points=points,
        settings=chosen,
        faults=Faults(stale_hours * 3600, outage_hours * 3600, limits=limits_of(settings.grid)),
        utc_offset_h=utc_offset,
        sweeping=sweep,
        want=want,
        out=out,
        plot=plot,
        known=settings,
    )
    console.print(report.table(figures, f"{course.zone}, {course.days:.0f} days from {course.start:%Y-%m-%d}"))
    if course.known_share < 1:
        gaps = f"{1 - course.known_share:.1%} of the time has no intensity: its answers and kWh count, for no grams"
        console.print(gaps, highlight=False, soft_wrap=True)
    if trials:
        console.print(report.table([one for _, one in trials], "frontier"))
        console.print(frontier.settings_for(trials, chosen[0], want), highlight=False, soft_wrap=True)
    for path in (out, plot):
        if path is not None:
            console.print(f"written: {path}", highlight=False, soft_wrap=True)


@models_app.command("list")
def list_models(store: StoreOption = None, config: ConfigOption = None, assign: SetOption = []) -> None:  # noqa: B006
    """Families and versions in the store."""
    opened = Store(_settings(config, assign, {"model.store": store}).settings.model.store)
    families = opened.families()
    if not families:
        nothing = f"{opened.root}: nothing is published; compile a family with `jouleserve-compile run RECIPE`"
        console.print(nothing, highlight=False, soft_wrap=True, markup=False)
        return
    table = Table("family", "version", "current", "points")
    for family in families:
        for name in opened.versions(family):
            try:
                points = ", ".join(point.name for point in opened.open(family, name).manifest.points)
            except StoreError as error:
                points = escape(f"refused: {error}")
            table.add_row(family, name, "yes" if name == opened.current(family) else "", points)
    console.print(table)


@models_app.command("verify")
def verify_models(
    family: FamilyOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    assign: SetOption = [],  # noqa: B006
) -> None:
    """Compute every digest of the version that would be served; exit code 2 if a byte differs."""
    model = _settings(config, assign, {"model.family": family, "model.store": store}).settings.model
    version = Store(model.store).open(model.family, model.version)
    files = list(version.manifest.files())
    size_mb = sum(ref.size_bytes for ref in files) / 1e6
    console.print(f"{model.family}: {version.name} is sound ({len(files)} files, {size_mb:.1f} MB) in {version.path}")


@models_app.command("fetch")
def fetch_model(
    url: Annotated[str, typer.Argument(help="Another store: s3://…, gs://…, http://…, file://…, or a folder.")],
    family: FamilyOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    assign: SetOption = [],  # noqa: B006
) -> None:
    """Bring the family's current version (or model.version) from another store, verify it, make it current."""
    from models.remote import fetch

    model = _settings(config, assign, {"model.family": family, "model.store": store}).settings.model
    version = fetch(url, Store(model.store), model.family, model.version)
    console.print(f"{model.family}: {version.name} is sound and current in {model.store}; serve it: jouleserve up")


@models_app.command("use")
def use_model(
    version: Annotated[str, typer.Argument(help="Name of a version, as `jouleserve models list` shows it.")],
    family: FamilyOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    assign: SetOption = [],  # noqa: B006
) -> None:
    """Make VERSION the current one (also how to roll back); a running server follows within seconds."""
    model = _settings(config, assign, {"model.family": family, "model.store": store}).settings.model
    opened = Store(model.store)
    opened.open(model.family, version)
    opened.set_current(model.family, version)
    console.print(f"{model.family}: {version} is current")


def main() -> None:
    """Entry point: what a user can mend becomes a clear line and exit code 2."""
    try:
        app()
    except SettingsError as error:
        _fail(*error.problems)
    except (StoreError, StartError, ReplayError, ReportError, CalibrationError) as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; give another path, or make this one readable and writable")


def _fail(*problems: str) -> NoReturn:
    for problem in problems:
        errors.print(f"error: {problem}", style="red", highlight=False, soft_wrap=True, markup=False)
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
