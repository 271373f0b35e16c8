"""Several runs of one config: every combination of some keys' values, each with several seeds.

grid.py       --over options -> arms and planned runs    summary.py    run directories -> sweep.json
execute.py    trains what is not finished, in processes   results.py    writes and prints the results
processes.py  here, or on a Ray cluster
"""
