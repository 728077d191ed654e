"""Where PLAST runs: turns one command into ranks. Imports no torch."""
