"""The published compression pipeline run again, beside ours: families x text sets, a cell at a time."""
