"""The `rlhf-marl` command. commands.py: every command; reward.py: the `reward` group."""

from rlhf_marl.cli.commands import main as main
