"""Settings of an evaluation.json, for tests that write one by hand."""

SETTINGS = {
    "questions": "q.jsonl",
    "questions_sha256": "0" * 64,
    "n_questions": 4,
    "n_dialogues": 8,
    "turns": 1,
    "seed": 1,
    "max_new_tokens": 16,
    "temperature": 1.0,
    "rlhf_marl": "0.1.0",
    "asked": {},
    "judge": None,
    "judges": {},
    "cards": {},
    "agents": "last",
    "adapters": "adapters",
    "adapters_sha256": None,
    "checkpoint_sha256": None,
    "confidence": 0.95,
    "resamples": 2000,
    "seconds": 1.5,
}
