"""Sparse coders in pure torch: nothing in this room knows of language models."""
