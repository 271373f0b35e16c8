"""Fixtures: a finished run of tiny agents, and a fake Hub."""

import hashlib
import json
import shutil
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import rlhf_marl
from tests.conftest import write_card


@pytest.fixture(scope="session")
def finished(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two agents, three iterations, over a base model in a local folder. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    cards = [
        write_card(folder, name, f"tests.conftest:{f}") for name, f in (("vowels", "count_vowels"), ("long", "length"))
    ]
    content = {
        "iterations": 3,
        "dialogues": 2,
        "turns": 2,
        "model": {"name": str(tiny_model_folder)},
        "lora": {"rank": 2, "alpha": 4.0},
        "agents": [{"reward_model": str(card)} for card in cards],
        "generation": {"max_new_tokens": 6, "max_prompt_tokens": 64},
        "prompts": {"source": "fixed", "question": "hi | <b>*you*</b>?"},
        "controller": {"kind": "shared", "aggregate_tokens": 5, "next_prompt_tokens": 5},
        "critic": {"width": 16, "depth": 2, "token_features": 4, "step_size": 0.001},
        "actor": {"step_size": 0.01},
        "checkpoint_every": 1,
    }
    rlhf_marl.train(content, run_dir=folder / "run")
    return folder / "run"


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "trained"))


class FakeHub(ThreadingHTTPServer):
    """What huggingface_hub calls to create a repository and to upload a folder, over LFS or in the commit itself.

    Attributes:
        fails: (path ending, status) of requests to refuse, each once, in this order.
        lfs: whether safetensors files go over LFS.
        repositories: name -> {"private": bool, "files": {path: bytes}}.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fails: list[tuple[str, int]] = []
        self.lfs = True
        self.repositories: dict[str, dict] = {}
        self.stored: dict[str, bytes] = {}  # LFS objects by their hash
        self.tokens: set[str | None] = set()
        self.commits: list[tuple[str, int]] = []  # (repository, number of lines)


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.tokens.add(self.headers.get("Authorization"))
        if self._refused(path):
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(
                200 if json.loads(body)["content"].startswith("---\n") else 400, {"errors": [], "warnings": []}
            )
        elif "/preupload/" in path:
            self._preupload(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/commit/" in path:
            self._commit("/".join(path.split("/")[3:5]), [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": f"no {path}"})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.stored[oid] = content
        self._answer(200, {})

    def do_GET(self) -> None:
        name, _, tree = self.path.partition("?")[0].removeprefix("/api/models/").partition("/tree/")
        if name in self.server.repositories and tree:
            files = self.server.repositories[name]["files"]
            self._answer(
                200, [{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in files]
            )
        elif name in self.server.repositories:
            self._answer(200, {"id": name, "private": self.server.repositories[name]["private"]})
        else:
            self._answer(404, {"error": "Repository not found"})

    def _refused(self, path: str) -> bool:
        if not self.server.fails or not path.endswith(self.server.fails[0][0]):
            return False
        self._answer(self.server.fails.pop(0)[1], {"error": f"refused; you sent {self.headers.get('Authorization')}"})
        return True

    def _create(self, wanted: dict) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        new = name not in self.server.repositories
        if new:
            self.server.repositories[name] = {"private": wanted.get("visibility") == "private", "files": {}}
        self._answer(200 if new else 409, {"url": f"{self.server.url}/{name}"})

    def _preupload(self, wanted: dict) -> None:
        def mode(path: str) -> str:
            return "lfs" if self.server.lfs and path.endswith(".safetensors") else "regular"

        files = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in wanted["files"]]
        self._answer(200, {"files": files})

    def _batch(self, wanted: dict) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}} for o in wanted["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict]) -> None:
        files = self.server.repositories[name]["files"]
        self.server.commits.append((name, len(lines)))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self._answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    server = FakeHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
