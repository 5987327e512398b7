"""`jouleserve report`: SCI score and return on investment from hourly totals, the same bytes from the same inputs."""
