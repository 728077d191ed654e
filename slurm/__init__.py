"""Slurm job scripts that come with the program."""
