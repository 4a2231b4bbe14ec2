"""What people look at: figures, pages, and the server; reads stored numbers, needs no language model."""
