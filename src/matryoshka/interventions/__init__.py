"""Features changed where they write, all else as it was: ablated, scaled, held at a level, weighed to first order."""
