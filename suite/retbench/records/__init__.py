"""Records of measurements: their schema, and reading and writing them."""
