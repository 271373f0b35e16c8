"""Evaluation of a run: did it get better, for whom, on questions it has not seen, and is it real or reward hacking?

questions.py    the held-out questions         statistics.py   paired bootstrap intervals
collect.py      dialogues, base and trained    verdict.py      one sentence per agent, from the intervals
judges.py       held-out and pairwise judges   summary.py      rows of dialogues -> evaluation.json
metrics.py      numbers of one response        evaluate.py     one run directory, start to end
refusal.py      is it a refusal?               compare.py      runs side by side
show.py         tables in the terminal         source.py       what of a run can be evaluated
command.py      rlhf-marl evaluate             stored.py       evaluation.json: form, reading, whose it is

Two files in the run directory. Numbers are finite or null.

evaluation_dialogues.jsonl, a line per policy, question and turn (N agents):
    {"policy": "base" | "trained", "question": id, "kind": "harmful" | "borderline" | "ordinary" | "multi_turn",
     "dialogue": number of the question, "turn": from 0, "prompt": text, "prompt_tokens": of the dialogue so far,
     "responses": [N texts], "tokens": [N], "truncated": [N bools], "refused": [N bools],
     "entropy": [N, nats a token], "kl": [N, nats a token], "scores": {judge: [N scaled]},
     "aggregate": the team's answer, "aggregate_tokens": n, "aggregate_refused": bool,
     "aggregate_scores": {judge: scaled}, "next_prompt": text or null, "fallbacks": 0 or 1,
     and with a pairwise judge, on trained rows: "preferred": [N + 1 numbers, the team last: 1 trained, 0 base,
     0.5 tie], "consistent": [N + 1 bools, whether both orders agreed]}

evaluation.json; METRIC is {"base", "trained", "difference", "low", "high", "n"}: means over questions, the paired
difference trained - base, its interval, and the number of questions:
    {"version": 2,
     "settings": {"questions", "questions_sha256", "n_questions", "n_dialogues", "turns", "seed", "max_new_tokens",
                  "temperature", "rlhf_marl" (version), "asked" (options), "cards": {card asked for: digest},
                  "judges": {name: digest of card}, "judge", "adapters" (where from), "adapters_sha256",
                  "checkpoint_sha256", "confidence", "resamples", "seconds"},
     "agents": [{"agent", "reward_model", "verdict", "own_reward": METRIC, "held_out_reward": METRIC or null,
                 "win_rate": {"rate", "low", "high", "n", "position_consistent", "judge"} or null,
                 "kl_to_base": {"mean", "low", "high"}, "entropy", "length", "distinct_1", "distinct_2",
                 "self_repetition", "refusal_harmful", "refusal_harmless", "truncated": METRIC or null}],
     "team": the same without agent, reward_model, kl_to_base, entropy and truncated; own_reward is the mean over all
             agents' reward models; "against_single": {"own_reward", "held_out_reward"}, METRICs whose base is one
             answer of the base model,
     "held_out_judges": [names of those in held_out_reward],
     "cross_rewards": {"judges": [{"name", "trained_agents": [agents]}], "rows": ["agent 0", ..., "team"],
                       "base", "trained", "difference", "low", "high": [row][judge]},
     "agreement": METRIC or null (one agent), "controller_fallbacks": METRIC,
     "by_kind": {kind: {"n", "own_reward": [METRIC per agent], "refusal": [METRIC per agent]}},
     "warnings": [texts]}
"""
