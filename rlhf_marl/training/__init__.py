"""Training: build.py builds an experiment; loop.py runs it.

team.py     the Team protocol; all agents in this process    learner.py  critic steps, gossip, actor steps
metrics.py  lines of metrics.jsonl and dialogues.jsonl       health.py   run-health warnings
"""
