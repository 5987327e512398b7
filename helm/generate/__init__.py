"""Writes what the chart takes from the code: Ray's environment, the schema of the values, Grafana's dashboards."""
