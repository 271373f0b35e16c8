"""Does a long run leak, or get slower? Memory, open files and CPU time an iteration, in one run of a tiny model.

    python benchmarks/soak.py [--iterations 2000] [--every 100] [--json soak.json]

The model is random and built on the spot; two agents, two parallel dialogues of two turns, checkpoints every ten
iterations; one reward comes from an HTTP server on this machine, so that connections and kept answers are part of it.
"""

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
import yaml

from rlhf_marl.config import check_config
from rlhf_marl.perf.stopwatch import stopwatch
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.services.journal import Journal
from rlhf_marl.training.build import build
from rlhf_marl.training.loop import run_training
from tests.conftest import tiny_llama, tiny_tokenizer


class Scorer(BaseHTTPRequestHandler):
    """Scores by length."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"scores": [len(text) / 10 for text in body["responses"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def reward_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scorer)  # a kept connection must not keep it from ending
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def config(folder: Path, url: str, iterations: int) -> dict[str, Any]:
    tiny_llama().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    cards = {
        "vowels": {"kind": "callable", "function": "tests.conftest:count_vowels"},
        "served": {"kind": "http", "url": url},
    }
    for name, card in cards.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name} | card))
    return {
        "iterations": iterations,
        "dialogues": 2,
        "turns": 2,
        "model": {"name": str(folder / "model")},
        "lora": {"rank": 2, "alpha": 4.0},
        "agents": [{"reward_model": str(folder / f"{name}.yaml")} for name in cards],
        "generation": {"max_new_tokens": 6, "max_prompt_tokens": 64},
        "prompts": {"source": "fixed", "question": "hi?"},
        "controller": {"kind": "shared", "aggregate_tokens": 5, "next_prompt_tokens": 5},
        "critic": {"width": 16, "depth": 2, "token_features": 4, "step_size": 0.001},
        "actor": {"step_size": 0.001},
        "checkpoint_every": 10,
    }


def megabytes() -> float:
    """Resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows: list[dict[str, float]] = []
    print("| iteration | memory (MiB) | open files | threads | files in the run | CPU seconds an iteration |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name, reward_server() as url:
        folder = Path(name)
        content = check_config(config(folder, url, chosen.iterations), "soak")
        journal = Journal(folder / "run" / "answers")
        experiment = build(content, "soak", torch.device("cpu"), journal=journal)
        run = RunDirectory.create(folder / "run", content, experiment.cards)
        since = time.process_time()

        def report(iteration: int, _: object) -> None:
            nonlocal since
            if iteration % chosen.every:
                return
            seconds = (time.process_time() - since) / chosen.every
            gc.collect()
            row = {
                "iteration": iteration,
                "memory_mib": round(megabytes(), 1),
                "open_files": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
                "run_files": sum(path.is_file() for path in run.path.rglob("*")),
                "cpu_seconds": round(seconds, 4),
            }
            rows.append(row)
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
            since = time.process_time()

        with stopwatch(torch.device("cpu")) as watch:
            run_training(experiment, run, report, lambda: False, watch)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
