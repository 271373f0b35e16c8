"""Speed: stopwatch.py times each stage of training; memory.py reuses freed memory for new tensors."""
