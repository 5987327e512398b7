"""Demand-shaping: moves standard requests to a cheaper operating point while the grid is dirty."""
