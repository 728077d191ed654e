"""PLAST: what each rank does."""
