"""Agents in processes of their own, on Ray. The driver plays the dialogue; agents gossip among themselves.

cluster.py  start or join Ray        team.py     the Team whose agents are Ray actors
worker.py   one actor: some agents   exchange.py gossip as messages between neighbours, round by round
build.py    build the experiment
"""
