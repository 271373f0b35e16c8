"""Uploads to a fake Hub, in subprocesses, because huggingface_hub reads its settings when imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_marl.hub.export_folder import MARKER
from tests.hub.conftest import FakeHub

TOKEN = "hf_secret0123456789"
PUSH = """
import sys
from pathlib import Path
from rlhf_marl.errors import RlhfMarlError
from rlhf_marl.hub import push as hub
folder, public, *names = sys.argv[1:]
for name in names:
    try:
        token = hub.check_push(name)
        print(hub.push(Path(folder), name, token, public=public == "public", message="m"))
    except RlhfMarlError as error:
        print(f"{type(error).__name__}: {error}")
assert "torch" not in sys.modules
"""


def environment(hub: FakeHub | None, home: Path, **others: str) -> dict[str, str]:
    url = hub.url if hub else "http://127.0.0.1:9"  # where nothing listens
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "PYTHONPATH": str(Path.cwd())}
    return kept | settings | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | others


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "exported"
    path.mkdir()
    (path / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# Agent\n")
    (path / "adapter_model.safetensors").write_bytes(bytes(range(200)))
    (path / MARKER).write_text("{}")
    return path


def pushed(folder: Path, *names: str, public: bool = False, **settings: str) -> list[str]:
    """A line for each repository name: the repository's address or the error."""
    command = [sys.executable, "-c", PUSH, str(folder), "public" if public else "private", *names]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    assert TOKEN not in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    lines = answer.stdout.splitlines()
    assert len(lines) == len(names)
    return lines


@pytest.mark.parametrize(("lfs", "xet"), [(True, "off"), (False, "on")])
def test_a_folder_arrives_whole_in_a_new_private_repository(folder, tmp_path, fake_hub, lfs, xet):
    fake_hub.lfs = lfs
    settings = environment(fake_hub, tmp_path, HF_HUB_DISABLE_XET=str(int(xet == "off")))
    # The second time goes into what is there.
    assert pushed(folder, "me/polite", "me/polite", **settings) == [f"{fake_hub.url}/me/polite"] * 2
    repository = fake_hub.repositories["me/polite"]
    assert repository["private"]
    assert repository["files"] == {
        name: (folder / name).read_bytes() for name in ("README.md", "adapter_model.safetensors")
    }
    assert bool(fake_hub.stored) == lfs
    assert fake_hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("xet", ["off", "on"])
def test_what_an_earlier_export_left_there_goes_in_the_same_commit(folder, tmp_path, fake_hub, xet):
    """An adapter_config.json next to a merged model's config.json would add the adapter a second time."""
    fake_hub.lfs = xet == "off"
    settings = environment(fake_hub, tmp_path, HF_HUB_DISABLE_XET=str(int(xet == "off")))
    (folder / "adapter_config.json").write_text("{}")
    pushed(folder, "me/polite", **settings)
    fake_hub.repositories["me/polite"]["files"] |= {"notes.md": b"mine", "images/adapter_config.json": b"mine"}
    (folder / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(folder / "adapter" / name)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    mine = {"notes.md", "images/adapter_config.json"}
    merged = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json", "model.safetensors"}
    pushed(folder, "me/polite", **settings)
    assert set(fake_hub.repositories["me/polite"]["files"]) == {"README.md"} | merged | mine
    for name in merged:
        (folder / name).unlink()
    (folder / "adapter_config.json").write_text("{}")
    pushed(folder, "me/polite", **settings)
    assert set(fake_hub.repositories["me/polite"]["files"]) == {"README.md", "adapter_config.json"} | mine
    assert len(fake_hub.commits) == 3


def test_public_only_if_asked(folder, tmp_path, fake_hub):
    settings = environment(fake_hub, tmp_path)
    fake_hub.repositories["me/open"] = {"private": False, "files": {}}
    assert pushed(folder, "me/open", **settings) == [
        "UsageError: --push: me/open exists and everyone can read it; add --public to publish there"
    ]
    assert not fake_hub.repositories["me/open"]["files"]
    pushed(folder, "me/open", "me/new", public=True, **settings)
    assert fake_hub.repositories["me/open"]["files"]
    assert not fake_hub.repositories["me/new"]["private"]


def test_a_refusal_is_one_line_without_the_token(folder, tmp_path, fake_hub):
    refusals = [
        (("create", 401), "UsageError: --push: the hub does not accept the token (401): set HF_TOKEN, or `hf auth"),
        (("create", 403), "UsageError: --push: the token may not write to me/x (403): it needs write access to me"),
        (("create", 404), "UsageError: --push: the hub has no me/x (404): does the user or organisation me exist?"),
        (("create", 400), "UsageError: --push: the hub refused me/x (400): "),
        (("batch", 403), "UsageError: --push: the token may not write to me/x (403)"),
        (("create", 429), "RlhfMarlError: --push: too many requests (429): the hub asks you to wait; try again later"),
        (("create", 500), f"RlhfMarlError: --push: the hub at {fake_hub.url} failed (500): "),
        (("validate-yaml", 400), "UsageError: --push: the hub refused me/x (400): Invalid metadata in README.md."),
    ]
    fake_hub.fails = [failure for failure, _ in refusals]
    lines = pushed(folder, *["me/x"] * len(refusals), **environment(fake_hub, tmp_path))
    for line, (_, beginning) in zip(lines, refusals, strict=True):
        assert line.startswith(beginning)
    assert "you sent Bearer ***" in lines[3]


def test_an_unreachable_hub_is_one_error_line(folder, tmp_path):
    (line,) = pushed(folder, "me/x", **environment(None, tmp_path))
    assert line.startswith("RlhfMarlError: --push: the hub at http://127.0.0.1:9 cannot be reached: ")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, so nothing is sent; unset it, or export without --push"),
        ({"HF_TOKEN": ""}, "no token for the hub: set HF_TOKEN, or log in once with `hf auth login`"),
    ],
)
def test_hopeless_uploads_send_no_request(folder, tmp_path, fake_hub, settings, line):
    polite, dots, good = pushed(folder, "polite", "me/../x", "me/x", **environment(fake_hub, tmp_path, **settings))
    assert polite == "UsageError: --push: 'polite' is not a repository name; give OWNER/NAME, such as me/polite-agent"
    assert dots.startswith("UsageError: --push: 'me/../x' is not a repository name")
    assert good == f"UsageError: --push: {line}"
    assert not fake_hub.tokens
