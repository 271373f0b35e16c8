"""Dialogues: where they start, who merges the answers, and the one loop that plays them.

player.py      Dialogue, Turn and the Player     questions.py  the first prompts
controller.py  merges, writes the next prompt    features.py   the critics' input
build_controller.py  the controller that a config describes
"""
