"""Evaluation of a run: which agents improved on held-out questions, and is it reward hacking?

questions.py    the held-out questions         statistics.py   paired bootstrap intervals
collect.py      dialogues, base and trained    verdict.py      one sentence per agent, from the intervals
judges.py       held-out and pairwise judges   summary.py      rows of dialogues -> evaluation.json
metrics.py      text metrics of responses      evaluate.py     evaluates one run directory
refusal.py      detects refusals               compare.py      runs side by side
labels.py       names of the metrics           trained_run.py  a run's agents, cards and training questions
schema.py       the content of evaluation.json files.py        reading it back
rescore.py      a run's dialogues, rescored    validation.py   held-out questions during training
loaded_run.py   a run's models in memory        mine.py        junk in a run that was rewarded

Two files in the run directory: evaluation.json (schema.py), and evaluation_dialogues.jsonl with a line per policy,
question and turn (N agents):
    {"policy": "base" | "trained", "question": id, "kind": "harmful" | "borderline" | "ordinary" | "multi_turn",
     "dialogue": number of the question, "turn": from 0, "prompt": text, "prompt_tokens": of the dialogue so far,
     "responses": [N texts], "tokens": [N], "truncated": [N bools], "refused": [N bools],
     "entropy": [N, nats a token], "kl": [N, nats a token], "scores": {judge: [N scaled]},
     "aggregate": the team's answer, "aggregate_tokens": n, "aggregate_refused": bool,
     "aggregate_scores": {judge: scaled}, "next_prompt": text or null, "fallbacks": 0 or 1,
     and with a pairwise judge, on trained rows: "preferred": [N + 1 numbers, the team last: 1 trained, 0 base,
     0.5 tie], "consistent": [N + 1 bools, whether both orders agreed]}
"""
