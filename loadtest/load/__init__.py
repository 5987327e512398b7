"""Load by recorded arrivals, with locust: when requests come is a recording's matter, not the server's.

`python -m loadtest.load run` drives a server and writes a report, `compare` puts two runs side by side.
"""
