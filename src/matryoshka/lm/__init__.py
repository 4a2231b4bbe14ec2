"""Language models: places in them (`sites`), and reading and replacing activations there (`model`)."""
