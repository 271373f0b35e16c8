"""A custom controller: a debate, as a Python function in a file."""

import rlhf_marl

DEBATE = """
def debate(messages, responses, *, turn, last):
    if last:
        return max(responses, key=len), None
    return " / ".join(responses), f"round {turn + 2}: {messages[0]['content']} The others said: {responses[-1]}"
"""


def test_a_function_merges_and_writes_the_next_prompt(tiny_content, tmp_path):
    (tmp_path / "protocol.py").write_text(DEBATE)
    content = tiny_content | {
        "controller": {"kind": "callable", "function": f"{tmp_path}/protocol.py:debate"},
        "generation": {"max_new_tokens": 6, "max_prompt_tokens": 200},
    }
    run = rlhf_marl.train(content, run_dir=tmp_path / "run")
    first = run.dialogues[run.dialogues["turn"] == 0]
    assert first["next_prompt"].str.startswith("round 2: hi? The others said:").all()
    assert first["aggregate"].str.contains("/").all()
    assert run.dialogues[run.dialogues["turn"] == 1]["next_prompt"].isna().all()
