"""Paths that more than their route must know."""

PROBES = {"/health", "/live"}
JOBS_PATH = "/jobs"
OPEN_PATHS = PROBES | {
    *("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"),
    *("/console", "/console/data"),
}
"""Served without an API key: whether the server is well, what every JouleServe's interface looks like, and the figures
that `/metrics` shows without one, too."""
