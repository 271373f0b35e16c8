"""A sweep.json by hand: two arms of two agents, one run that failed."""

from typing import Any


def numbers(mean: float, width: float | None = 0.25) -> dict[str, Any]:
    low, high = (None, None) if width is None else (mean - width, mean + width)
    return {"mean": mean, "low": low, "high": high, "n": 3}


def sweep_numbers(arms: tuple[str, str] = ("rounds=0", "rounds=20"), model: str = "vowels") -> dict[str, Any]:
    names = ("agent 0", "agent 1", "team")
    return {
        "version": 1,
        "config": "tiny.yaml",
        "over": {"seed": [0, 1, 2], "rounds": [0, 20]},
        "reference": arms[0],
        "arms": [
            {
                "name": arm,
                "values": {"rounds": 20 * k},
                "runs": [
                    {"seed": seed, "folder": f"{arm}/{seed}", "state": "finished", "reason": None} for seed in range(3)
                ],
                "speakers": [
                    {
                        "name": name,
                        "reward_model": None if name == "team" else model,
                        "reward": numbers(k + 0.5),
                        "change": numbers(-1.0 if k else 0.1),
                        "held_out": numbers(0.75) if k else None,
                        "verdicts": {"no clear change": 2} if k else {},
                    }
                    for name in names
                ],
                "curves": [
                    {
                        **{"name": name, "update": [1, 2, 3], "mean": [k + 0.0, k + 0.25, k + 0.5]},
                        **{"low": [k - 0.5] * 3, "high": [k + 1.0] * 3},
                    }
                    for name in names
                ],
            }
            for k, arm in enumerate(arms)
        ],
        "differences": [
            {"arm": arms[1], "speaker": name, "reward": numbers(1.0), "held_out": None, "note": None} for name in names
        ],
    }
