"""The one process per node that owns the meters and serves `/metrics`. Start it with `python -m
server.node`.
"""
