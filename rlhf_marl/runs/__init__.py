"""directory.py: the files of a run directory. checkpoints.py: its checkpoints. log.py: its log file."""
