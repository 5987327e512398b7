"""What-if: recorded intensity and arrivals through the very policies that serve, beside oracle and plain mixes."""
