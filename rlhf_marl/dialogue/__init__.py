"""Dialogues: initial questions, the controller that merges responses, and the loop that plays them.

player.py      Dialogue, Turn and the Player     questions.py  the initial questions
controller.py  merges, writes the next prompt    features.py   the critics' input
build_controller.py  the controller that a config describes
"""
