"""Questions across coders, answered from a recording of their latents on the same tokens: one file a question."""
