"""Speed: stopwatch.py times each stage of training; memory.py keeps freed memory for the next tensors."""
