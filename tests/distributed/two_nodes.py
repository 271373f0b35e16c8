"""A run on two Ray nodes of one machine, of which one goes in the middle. Run by test_training.py, in its own process:

    python -m tests.distributed.two_nodes CONFIG.json RUN ITERATION

The second node has room for one agent. It ends, with its agent, after the first iteration, and another takes its place
before iteration ITERATION. Prints the warnings, one a line.
"""

import json
import logging
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import rlhf_marl
from rlhf_marl.distributed.build import build_distributed


def main() -> None:
    content, path = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    logging.getLogger("rlhf_marl").addHandler(logging.StreamHandler(sys.stdout))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": len(content["agents"]) - 1})
    node = cluster.add_node(num_cpus=1)

    def builder(*arguments, journal):
        experiment = build_distributed(*arguments, journal)
        begin = experiment.team.begin

        def in_between(iteration):
            if iteration == 1:
                cluster.remove_node(node, allow_graceful=False)
                time.sleep(5)  # its agent's process ends within a second
            if iteration == int(sys.argv[3]):
                cluster.add_node(num_cpus=1)
                while waiting := [ref for _, ref in experiment.team._returning.values()]:
                    ray.wait(waiting)
                    begin(iteration)
            begin(iteration)

        experiment.team.begin = in_between
        return experiment

    try:
        rlhf_marl.train(
            content | {"runtime": content["runtime"] | {"address": cluster.address}}, run_dir=path, builder=builder
        )
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
