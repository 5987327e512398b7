"""Load and measurement from outside: talks to the public API only."""
