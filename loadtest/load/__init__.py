"""Load with locust by arrivals fixed beforehand: when requests come is the plan's matter, not the server's.

`python -m loadtest.load run` drives a server and writes a report, `compare` puts two runs side by side.
"""
