"""What the verbs take where nothing is said, once for Python's signatures and the flags' help; and a cut of rooms."""

EVALUATION_TOKENS = 32_768
"""`eval`, the evaluation at the end of `train`, and `steer`: held-out tokens to measure on."""
FEATURE_TOKENS = 2_000_000
"""`features`: tokens to read."""
COMPARED_TOKENS = 1_000_000
"""`compare`: held-out tokens to read."""
STRENGTH, PROMPT, STEERED_TOKENS, TEMPERATURE = 5.0, "I think that", 40, 0.7
"""`steer`: the level in units of the feature's maximum, the text to go on with, how far, and how tokens are drawn."""
PORT = 8421
"""`serve`: of this machine."""
DENSE = 0.1
"""Features that fire on a larger share of the tokens are flagged, and are apart where they would hide the others."""
