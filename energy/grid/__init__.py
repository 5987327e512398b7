"""How clean the grid is: providers of carbon intensity, one file each, and the ladder that guards them."""
