"""What several evaluations need: labelled text and its rows, probes, the arithmetic of absorption, sums and passes."""
