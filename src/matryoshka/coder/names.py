"""What a coder's choices are called in a configuration; torch, which makes them work, is not imported for that."""

from typing import Literal

ActivationName = Literal["topk", "batchtopk", "jumprelu"]
"""Of `activations`."""
ConventionName = Literal["matryoshka", "saelens", "bussmann", "dictionary_learning"]
"""Of `losses`."""
