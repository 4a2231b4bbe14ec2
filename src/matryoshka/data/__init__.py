"""Text → tokens on disk → batches of activations."""
