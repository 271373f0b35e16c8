"""The algorithm, on tensors only, with any leading batch dimensions; agents are on the second-to-last axis.

topology.py  graphs, consensus matrices, Assumption 5.1     mixing.py      gossip, disagreement, bytes sent
network.py   Eq. (5)                                        critic.py      Algorithm 2
signals.py   TD errors, actor signals, credit               objectives.py  weight of each token's score function
actor.py     baseline, line 17's step                       optimizers.py  Adam per agent
masks.py     zero-sum masks over what is gossiped
"""
