"""Products of compressed matrices, in machine code made on the machine that runs them. They know addresses, no torch."""
