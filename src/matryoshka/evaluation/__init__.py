"""Coders spliced back into the language model: where `coder` and `lm` first meet."""
