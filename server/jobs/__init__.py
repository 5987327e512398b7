"""Requests that can wait: kept in one SQLite file, run in the cleanest hours before their deadlines.

One process owns the file: the one that `jouleserve up` started, which also looks at the grid (`desk`). Replicas answer
`/jobs` by asking it, and fetch texts to compute from it when they have nothing better to do (`worker`); in edge mode
all of that is one process, and under Ray Serve they talk over a UNIX socket (`link`).
"""
