"""A row per card file, broken ones too, without torch."""

import subprocess
import sys

from rlhf_marl.rewards.listing import cards
from tests.conftest import write_card


def test_a_row_per_card_file(tmp_path):
    write_card(tmp_path, "a", "m:f")
    (tmp_path / "b.yaml").write_text("name: b\n")
    one, other = cards([tmp_path])
    assert one == {
        "card": str(tmp_path / "a.yaml"),
        "kind": "callable",
        "scorer": "m:f",
        "licence": "none",
        "here": "yes",
    }
    assert other["scorer"].startswith("not a card: ")


def test_listing_does_not_import_torch_and_fits_80_columns():
    code = (
        "import sys; from rlhf_marl.cli.commands import cli; cli(['reward', 'list'], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "False"
    assert max(map(len, printed.splitlines())) <= 80
