"""The run directory: directory.py its files, checkpoints.py its checkpoints."""
