"""What the reference implementations compute, a file for each group of families."""
