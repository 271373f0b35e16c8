"""Stands in for `python -m rlhf_marl`: trains nothing, writes what a finished training leaves.

A step size of 0.5 fails; one of 0.25 with a seed below 2 waits for Ctrl-C at first and finishes when resumed. Agent
i's reward in update u is seed + gossip_rounds + i + u.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

arguments = sys.argv[3:]
with Path("calls.txt").open("a") as log:
    log.write(" ".join(arguments) + "\n")
print("threads", os.environ.get("OMP_NUM_THREADS"))
if arguments[0] == "evaluate":
    sys.exit(0)
config = yaml.safe_load(Path(arguments[1]).read_text())
path = Path(arguments[arguments.index("--run-dir") + 1])
if config["actor"]["step_size"] == 0.5:
    print("loading\nerror: the service is down", file=sys.stderr)
    sys.exit(3)
path.mkdir(exist_ok=True)
(path / "config.yaml").write_text(yaml.safe_dump(config))
cards = [
    {"name": Path(agent["reward_model"]).stem, "kind": "callable", "function": "m:f"} for agent in config["agents"]
]
(path / "reward_models.json").write_text(json.dumps(cards))
if config["actor"]["step_size"] == 0.25 and config["seed"] < 2 and "--resume" not in arguments:
    signal.signal(signal.SIGINT, lambda *_: sys.exit((path / "saved").touch() or 130))
    (path / "waiting").touch()
    time.sleep(60)
rows = []
for i in range(config["iterations"]):
    for agent, card in enumerate(cards):
        reward = config["seed"] + config["topology"]["gossip_rounds"] + agent + i
        row = {"update": i, "iteration": i, "agent": agent, "reward_model": card["name"], "reward_scaled": reward}
        rows.append(json.dumps(row) + "\n")
(path / "metrics.jsonl").write_text("".join(rows))
(path / "best").mkdir()
