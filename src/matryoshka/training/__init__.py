"""Training: the configuration, the loop over a list of coders fed by one stream, its checkpoints and its logs."""
