"""Serves what the compiler published: answers, energy books, demand-shaping, jobs, reports. No torch in it."""
