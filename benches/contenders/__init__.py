"""The contenders of the comparison, each a module with the programs of its two ends."""
