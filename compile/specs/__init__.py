"""Settings of passes as a recipe gives them; plain data, no torch."""
