"""Coders and the texts that they are studied on: the one pass of the language model, and what it leaves."""
