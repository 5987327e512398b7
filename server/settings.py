"""Schema of the server's settings. Every field says below it what it trades and in which unit.

`server.config.load` reads them from a file, the environment and the command line.
"""

from __future__ import annotations

from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from energy.grid.choice import ProviderName
from energy.grid.signal import Measure
from server.job_settings import JobsSettings
from server.node.figures import NodeAddress
from server.section import MIB, Section
from server.shaping_settings import ShapingSettings

ENV_PREFIX = "JOULESERVE_"


class ServerSettings(Section):
    """Where the server listens and what it accepts."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 opens the server to the network: give it `api_keys_file` then. `/metrics` is
    opened along with it and has no keys."""
    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port of `/predict`."""
    metrics_port: int = Field(default=9400, ge=1, le=65535)
    """TCP port of the node process's `/metrics`. Must differ from `port`."""
    grpc_port: int | None = Field(default=None, ge=1, le=65535)
    """TCP port of gRPC (Open Inference Protocol and `jouleserve.v1`), straight to the replicas; null opens none. Needs
    the `[grpc]` extra and some memory; a gRPC request costs more than an HTTP one."""
    run_dir: Path = Path("var/run")
    """Folder for sockets, logs, `grid.json` and `tuning.json`. Two servers must not share one."""
    drain_timeout_s: float = Field(default=20, gt=0, le=600)
    """Seconds that requests in flight get to finish at shutdown. Longer loses fewer answers and stops
    later."""
    max_body_bytes: int = Field(default=MIB, ge=1024)
    """Largest request body, bytes. Larger admits longer batches and costs memory per connection."""
    max_texts_per_request: int = Field(default=64, ge=1, le=4096)
    """Most texts in one request. More saves HTTP cost per text; one request then holds the queue for
    longer."""
    max_text_chars: int = Field(default=20_000, ge=1)
    """Longest text, characters. Guards the tokenizer; what exceeds the model's tokens is cut or refused."""
    request_timeout_s: float = Field(default=10, gt=0, le=3600)
    """Seconds until a request that is still unanswered is given up (504). Shorter frees the queue earlier."""
    api_keys_file: Path | None = None
    """File of the API keys, one a line: `name: sha256:` and the hex digest of the key; mode 0600. Clients send
    `Authorization: Bearer KEY`. Changes are followed within about a second; null lets everybody in."""
    admin_keys_file: Path | None = None
    """File of the keys, in the same form, with which `/admin` shows and changes settings while the server runs, as
    `jouleserve tune` does; the name of the key goes to the audit log. Null closes `/admin`."""
    rate_limit_texts_per_s: float | None = Field(default=None, gt=0, le=1_000_000)
    """Texts per second that a key may ask for in the long run, per replica; past it the answer is 429. Without keys
    all clients share one limit; null sets none."""
    rate_limit_burst_texts: int = Field(default=256, ge=1, le=1_000_000)
    """Texts that a key may ask for at once after a pause. More lets clients come in bursts and the queue fill up."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged. What is asked, and keys, are in no log at any level."""
    fast_lane: bool = True
    """Hand `/predict` to the engine past Ray Serve's per-request bookkeeping, which about doubles the cost of HTTP.
    Serve's own request metrics do not see such requests; `/metrics` and `max_replicas` go by the engine, which does."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Replicas under Ray Serve (edge mode has one). One uses every core already; two answer on while one that died is
    replaced, which takes seconds, and cost about 200 MiB and 0.6 CPU-seconds a minute more."""
    max_replicas: int | None = Field(default=None, ge=1, le=64)
    """Most replicas under Ray Serve, which then runs as many, from `replicas` on, as `target_requests_in_flight` asks
    for; null keeps the number at `replicas`. More than one for each machine gains little: one uses every core."""
    target_requests_in_flight: float = Field(default=64, gt=0, le=100_000)
    """Requests in flight that a replica should have where `max_replicas` is given. Fewer answers sooner with more
    replicas; more fills batches and costs fewer joules."""
    dashboard: bool = False
    """Start Ray's dashboard. Handy for debugging; it alone idles at about 2.5 CPU-seconds a minute."""

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port == self.metrics_port:
            raise ValueError(f"metrics_port: {self.metrics_port} is also server.port; give another port")
        if self.grpc_port in (self.port, self.metrics_port):
            raise ValueError(f"grpc_port: {self.grpc_port} is also another port of the server; give another one")
        return self

    @model_validator(mode="after")
    def _replicas_ordered(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas: {self.max_replicas} is below server.replicas {self.replicas}; raise it or leave it out"
            )
        return self


class ModelSettings(Section):
    """Which compiled family is served."""

    store: Path = Path("var/store")
    """Folder of published families, as `jouleserve-compile` writes it."""
    family: str = Field(default="support-intents", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Name of the family to serve."""
    version: str | None = None
    """Version to serve; null follows the store's current one. A fixed version never surprises and never
    improves."""


class BatchingBounds(Section):
    """Bounds of the batcher that can change while it runs."""

    max_rows: int = Field(default=16, ge=1, le=1024)
    """Most texts in a batch. 8 to 16 measured cheapest; more pads more, fewer repeats per-call cost."""
    max_tokens: int = Field(default=1024, ge=16, le=1_048_576)
    """Most tokens in a batch, rows x longest. Larger amortizes better, smaller answers sooner and pads
    less."""
    max_queue_requests: int = Field(default=512, ge=1, le=100_000)
    """Requests that may wait; past it the answer is 429. Longer rides out bursts and lengthens the slowest
    replies."""
    latency_objective_ms: float | None = Field(default=None, ge=1, le=3_600_000)
    """Milliseconds that the 99th percentile should keep inside the server. With one, batches shrink where that saves
    their oldest request, and requests are refused at once (429) where the slowest percent would take over 1.5 times as
    long. Null answers all that the queue and the time limit allow, at the fewest joules."""
    inline_ms: float = Field(default=20, ge=0, le=1000)
    """A request that comes alone and should take at most so many milliseconds is computed on the event loop: no thread
    is woken for it. Higher saves joules at low rates; a request that comes meanwhile waits so long. 0 never does it."""


class BatchingSettings(BatchingBounds):
    """How requests become batches."""

    workers: int | None = Field(default=None, ge=1, le=1024)
    """One-thread model runners; null measures once how many pay on this machine, and takes one per core until then.
    Fewer leaves cores to others."""


class CacheBounds(Section):
    """Bounds of the reply cache that can change while it runs."""

    ttl_s: float = Field(default=300, gt=0, le=86_400 * 30)
    """Seconds a reply may be repeated. Longer saves more joules and serves an old model's answers for
    longer."""
    max_bytes: int = Field(default=64 * MIB, ge=0)
    """Most memory of the cache, bytes, per replica. Larger hits more often."""


class CacheSettings(CacheBounds):
    """Cache of whole replies."""

    enabled: bool = True
    """Keep replies and answer equal requests from them. A hit costs next to no joules and some memory."""
    redis_url: str | None = Field(default=None, pattern=r"^(rediss?://[^\s@]+|unix://[^\s@]+)$")
    """Redis that replicas share answers through, such as redis://127.0.0.1:6379/0; null shares nothing. A lookup costs
    each text that is not in memory up to 25 ms; worth it for costly models and several replicas. Needs `[redis]`."""
    redis_password_file: Path | None = None
    """File that holds the password of `redis_url`; null sends none."""

    @model_validator(mode="after")
    def _redis_installed(self) -> Self:
        if self.redis_url is not None and find_spec("redis") is None:
            raise ValueError("redis_url: needs the redis client; pip install '.[redis]', or leave it out")
        return self


class GridSettings(Section):
    """Where the carbon intensity comes from (average, location-based)."""

    provider: ProviderName = "static"
    """`static`: one number. `replay`: a recorded CSV, played. These need the internet: `uk`
    (api.carbonintensity.org.uk), `electricity_maps` (a token) and `watttime` (an account)."""
    zone: str | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    """Grid zone: Electricity Maps' (such as DE) or WattTime's region (such as CAISO_NORTH); for the others a label,
    null takes the provider's own (uk: GB)."""
    secret: SecretStr | None = None
    """Electricity Maps' token, or WattTime's password. Better given by the environment (JOULESERVE_GRID__SECRET) or a
    file than here."""
    secret_file: Path | None = None
    """File that holds the secret alone; read again at each use, so that it may be changed while the server runs."""
    username: str | None = Field(default=None, min_length=1, max_length=128)
    """Name of the WattTime account."""
    measure: Measure = "average"
    """`average` intensity, or `marginal` (watttime alone), which moves the dial but books no grams: the two are never
    mixed."""
    static_grams_per_kwh: float | None = Field(default=None, ge=0, le=5000)
    """gCO2e/kWh of `static`. null assumes the world mean for the gram figures and never shapes by it: an
    assumed constant must not degrade answers."""
    replay_path: Path | None = None
    """CSV (or .csv.gz) of UTC time and gCO2e/kWh for `replay`."""
    replay_speed: float = Field(default=1, gt=0, le=1_000_000)
    """Recorded seconds per real second. 1440 plays a day in a minute: lower `poll_period_s` and
    `min_dwell_s` too."""
    replay_start: datetime | None = None
    """UTC time in the recording to start from; null starts at its first row."""
    replay_began: datetime | None = None
    """UTC time of the real clock at which `replay_start` was played; null takes the server's start. With it, a server
    that is restarted goes on in the recording where it would be, as jobs want it."""
    replay_forecast_path: Path | None = None
    """CSV (or .csv.gz) of issued_utc, target_utc and forecast, as they were issued at the time; null has none."""
    history_path: Path | None = None
    """CSV (or .csv.gz) of the zone's past year, UTC times and gCO2e/kWh, for a first start: `percentile` then knows the
    zone's seasons from the beginning. Null learns them as they pass."""
    base_url: str | None = Field(default=None, pattern=r"^https?://[^\s@]+$")
    """Base URL of the provider's API, for a proxy or another version of it; null takes the public one."""
    request_timeout_s: float = Field(default=10, gt=0, le=120)
    """Seconds one fetch may take, connecting and reading together."""
    max_attempts: int = Field(default=3, ge=1, le=10)
    """Tries per poll, with growing jittered pauses. More hides short outages and loads the provider."""
    cache_path: Path | None = None
    """File of the last readings, so that a restart has history; null uses `<run_dir>/grid-cache.json`."""
    live_max_age_s: float = Field(default=7200, gt=0, le=86_400)
    """Oldest reading that still counts as live, seconds. Older ones are stale and the next rung is tried."""
    cached_max_age_s: float = Field(default=7200, gt=0, le=86_400)
    """Oldest earlier reading that stands in for a failed fetch, seconds."""
    forecast_max_age_s: float = Field(default=86_400, gt=0, le=345_600)
    """Oldest forecast (since it was issued) that stands in, seconds. Error grows to about 20 % on the
    fourth day."""
    history_days: int = Field(default=28, ge=7, le=92)
    """Trailing days behind the hour-of-week mean, the last rung. More is steadier and lags the season."""

    @model_validator(mode="after")
    def _provider_complete(self) -> Self:
        if self.provider == "replay" and self.replay_path is None:
            raise ValueError("replay_path: missing although provider is 'replay'; give a CSV of times and gCO2e/kWh")
        if self.provider == "uk" and self.zone not in (None, "GB"):
            raise ValueError(f"zone: the uk provider serves GB, not {self.zone!r}; leave zone out")
        if self.provider in ("electricity_maps", "watttime"):
            if self.zone is None:
                raise ValueError(f"zone: missing although provider is '{self.provider}'; name the zone")
            if self.secret is None and self.secret_file is None:
                raise ValueError(
                    f"secret_file: missing although provider is '{self.provider}'; give a file that holds the secret,"
                    " or JOULESERVE_GRID__SECRET"
                )
        if self.secret is not None and self.secret_file is not None:
            raise ValueError("secret_file: secret is given, too; leave one of them out")
        if self.provider == "watttime" and self.username is None:
            raise ValueError("username: missing although provider is 'watttime'; give the account's name")
        if self.measure == "marginal" and self.provider != "watttime":
            raise ValueError(f"measure: '{self.provider}' tells averages alone; take average, or the provider watttime")
        return self


class EnergySettings(Section):
    """How joules are measured."""

    source: Literal["auto", "rapl", "nvml", "estimated"] = "auto"
    """`auto` takes counters where they can be read and the estimate for the rest; a name insists on that
    one."""
    pue: float = Field(default=1.0, ge=1, le=5)
    """Power usage effectiveness of the site: joules at the meter per joule of IT. 1 leaves cooling out."""
    cpu_family: str | None = None
    """Key of the estimate's coefficients; null detects the CPU. For machines that hide their model."""
    node_dir: Path | None = None
    """Folder of a node process that is run apart, one for the whole machine (a DaemonSet's, which may read the
    counters): replicas report to it and none is started here. Null starts one in `server.run_dir`."""
    calibration: Path | None = None
    """The estimate's own power curve, as `jouleserve calibrate` writes it; null takes the CPU family's coefficients,
    which are off by up to 80 % (idling) and 50 % (above it)."""
    tick_s: float = Field(default=1, ge=0.2, le=60)
    """Seconds between two readings of the meters. Shorter attributes more finely and costs more joules
    itself."""


class TracingSettings(Section):
    """Where OpenTelemetry spans go."""

    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^@]+$")
    """Base URL of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318; spans go to its /v1/traces.
    Null follows OTEL_EXPORTER_OTLP_ENDPOINT, and where that is unset nothing is traced. Traced requests cost more."""


class Settings(BaseSettings):
    """All settings, validated together. `server.config.load` makes it from the file and the environment."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_parse_none_str="null",
    )

    server: ServerSettings = ServerSettings()
    model: ModelSettings = ModelSettings()
    batching: BatchingSettings = BatchingSettings()
    cache: CacheSettings = CacheSettings()
    shaping: ShapingSettings = ShapingSettings()
    grid: GridSettings = GridSettings()
    energy: EnergySettings = EnergySettings()
    tracing: TracingSettings = TracingSettings()
    jobs: JobsSettings = JobsSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the call alone: `load` layers the sources itself so that it knows each value's
        origin."""
        return (init_settings,)

    @property
    def node_dir(self) -> Path:
        """Run folder of the node process that replicas report to."""
        return self.energy.node_dir or self.server.run_dir

    @property
    def node_address(self) -> NodeAddress:
        """Where that node process answers."""
        return NodeAddress(self.server.host, self.server.metrics_port, self.energy.node_dir)

    @property
    def grid_cache_path(self) -> Path:
        """File of the last grid readings."""
        return self.grid.cache_path or self.server.run_dir / "grid-cache.json"

    @property
    def jobs_path(self) -> Path:
        """SQLite file of the jobs."""
        return self.jobs.path or self.server.run_dir / "jobs.sqlite"

    @property
    def policy_state_path(self) -> Path | None:
        """File of what the policy learned of the grid; None where the grid is a recording, whose times are not now."""
        return None if self.grid.provider == "replay" else self.server.run_dir / "policy.json"

    @property
    def orders_path(self) -> Path:
        """File of the orders in force, for replicas that start while the server runs."""
        return self.server.run_dir / "orders.json"

    @property
    def tuning_path(self) -> Path:
        """The watched file through which settings change while the server runs."""
        return self.server.run_dir / "tuning.json"
