"""The folder that `evaluate.load` reads; see the script of the same name."""
