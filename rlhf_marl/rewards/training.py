"""Train a reward model from preference pairs: TRL's RewardTrainer, then scaling and calibration on held-out pairs."""

import contextlib
import io
import json
import logging
import math
import random
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from jinja2 import TemplateError
from scipy.special import expit
from scipy.stats import binomtest
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import or_stop, writing_folder
from rlhf_marl.files.yaml_files import dump_yaml
from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.conversations import flat
from rlhf_marl.policy.loading import check_vocabulary, context_of, load_model_of, load_tokenizer
from rlhf_marl.policy.references import quiet
from rlhf_marl.rewards.frozen_layers import keep_layers, top_layers
from rlhf_marl.rewards.gate import load_gate, measure
from rlhf_marl.rewards.junk import derive_in_turn
from rlhf_marl.rewards.preferences import Pair, load_pairs
from rlhf_marl.rewards.sequence_classifier import SequenceClassifier, SequenceClassifierCard, classifier_inputs
from rlhf_marl.rewards.trained import TrainedCard
from rlhf_marl.sanitise import first_line

_log = logging.getLogger("rlhf_marl")
_BINS = 5  # bins of the reliability table, between confidence 0.5 and 1


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of pairs whose chosen response scores higher (ties count half), with Wilson's 95% interval."""

    accuracy: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Bin:
    """One row of the reliability table: pairs whose more likely response has a probability in this range."""

    confidence: float  # mean of the model's probability, sigmoid(score difference)
    accuracy: float
    pairs: int


def train_reward_model(card: TrainedCard, folder: Path, where: str) -> dict:
    """Train, then write model, tokenizer, card (`card.yaml`) and measurements (`training.json`) to a new folder.

    Returns the measurements: accuracy on held-out pairs with its interval, scale, offset, reliability table. Scale and
    offset are fitted on whole responses and, if the card asks for them, openings. If another process finishes the
    folder meanwhile, its measurements.

    Raises:
        UsageError: unreadable data, too few pairs, or an unusable base.
        RunStopped: the disk is full.
    """
    pairs = load_pairs(card.data, f"{where}: data", card.split, columns=card.columns, on_bad_row=card.on_bad_row)
    pairs = _that_fit(card, pairs, where)
    train, held_out = split_pairs(pairs, card.held_out, card.seed)
    if min(len(train), len(held_out)) < 2:
        raise UsageError(
            f"{where}: data: {len(pairs)} pairs are too few to train on with a share of {card.held_out} held out"
        )
    junk = _that_fit(card, junk_pairs(card, train, held_out, where), where)
    with or_stop(folder, "start again"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(folder, card.name):
            if not (folder / "card.yaml").is_file():  # otherwise another process has trained it
                _train_to(folder, card, train, junk, held_out, where)
        return json.loads((folder / "training.json").read_text("utf-8"))


def _that_fit(card: TrainedCard, pairs: list[Pair], where: str) -> list[Pair]:
    """The pairs without those that the template refuses or that are too long, if bad rows are skipped; counts them."""
    tokenizer = load_tokenizer(card.base, f"{where}: base")
    if card.input == "chat" and not tokenizer.chat_template:
        raise UsageError(f"{where}: base: {card.base!r} has no chat template; use input: pair, or another base")
    fitting = []
    long = refused = 0
    for number, pair in enumerate(pairs, 1):
        try:
            cut = any(_inputs(card, tokenizer, pair, response)[1] for response in (pair.chosen, pair.rejected))
        except TemplateError as error:
            if card.on_bad_row == "refuse":
                reason = f"pair {number}: the base's chat template refuses it: {first_line(error)}"
                raise UsageError(f"{where}: data: {reason}") from None
            refused += 1
            continue
        long += cut
        if not (cut and card.on_bad_row == "skip"):
            fitting.append(pair)
    if refused:
        _log.warning(
            "reward model %s: %d of %d pairs do not fit the chat template: left out", card.name, refused, len(pairs)
        )
    if long:
        done = "left out" if card.on_bad_row == "skip" else "cut from the left"
        _log.warning(
            "reward model %s: %d of %d pairs are longer than %d tokens: %s",
            *(card.name, long, len(pairs), card.max_tokens, done),
        )
    return fitting


@contextlib.contextmanager
def _only_one(folder: Path, name: str) -> Iterator[None]:
    """Lock the creation of this folder; waits while another process holds the lock."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("reward model %s: another process is training it; waiting", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _train_to(
    folder: Path,
    card: TrainedCard,
    train: Sequence[Pair],
    junk: Sequence[Pair],
    held_out: Sequence[Pair],
    where: str,
) -> None:
    """Train in a temporary folder, then rename it: the result is atomic, and a killed training starts over."""
    gate = load_gate(card.gate, f"{where}: gate", [*train, *junk]) if card.gate else {}
    with writing_folder(folder) as temporary:
        step = 1 if card.opening_words is None else 2  # every other junk pair is trained on as an opening instead
        rows = [(pair, card.junk_margin) for pair in [*junk[::step], *openings(junk[1::2], card.opening_words)]]
        passes = math.ceil(card.epochs) if junk else 1  # over the data; there is enough junk for one
        rows += passes * [(pair, 0.0) for pair in [*train, *openings(train, card.opening_words)]]
        _fit(card, rows, card.epochs / passes, temporary, where)
        raw_card = SequenceClassifierCard(
            name=card.name,
            kind="sequence_classifier",
            model=str(temporary),
            input=card.input,
            max_tokens=card.max_tokens,
        )
        model = SequenceClassifier(raw_card)
        chosen, rejected = score_pairs(model, held_out)
        cut_chosen, cut_rejected = score_pairs(model, openings(held_out, card.opening_words))
        scores = torch.tensor(chosen + rejected + cut_chosen + cut_rejected, dtype=torch.float64)
        measured = {
            "held_out": asdict(accuracy(chosen, rejected)),
            "reliability": [asdict(row) for row in reliability(chosen, rejected)],
            "scale": float(f"{max(scores.std().item(), 1e-6):.4g}"),
            "offset": float(f"{-scores.mean().item():.4g}"),
            "trained_on": len(train),
            "junk": len(junk),
            "gate": {kind: row.model_dump() for kind, row in measure(gate, raw_card, model).items()},
        }
        result = raw_card.model_dump(mode="json", exclude_defaults=True) | {
            "description": card.description,
            "licence": card.licence,
            "model": ".",
            "scale": measured["scale"],
            "offset": measured["offset"],
        }
        result |= {"gate": measured["gate"]} if gate else {}
        (temporary / "card.yaml").write_text(dump_yaml(result), "utf-8")
        (temporary / "training.json").write_text(json.dumps(measured, indent=2) + "\n", "utf-8")


def junk_pairs(card: TrainedCard, train: Sequence[Pair], held_out: Sequence[Pair], where: str) -> list[Pair]:
    """The card's pairs with junk, but for held-out prompts, and those derived from all chosen answers."""
    sources = (load_pairs(source, f"{where}: junk", card.split, on_bad_row=card.on_bad_row) for source in card.junk)
    asked = {flat(pair.prompt) for pair in held_out}
    given = [pair for pairs in sources for pair in pairs if flat(pair.prompt) not in asked]
    return given + (derive_in_turn([*train, *given], card.derived_junk, card.seed) if card.derived_junk else [])


def split_pairs(pairs: Sequence[Pair], held_out: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs in a seeded order; pairs with the same prompt stay together."""
    asked = [flat(pair.prompt) for pair in pairs]
    prompts = sorted(set(asked))
    random.Random(seed).shuffle(prompts)
    kept = set(prompts[round(held_out * len(prompts)) :])
    train = [pair for pair, prompt in zip(pairs, asked, strict=True) if prompt in kept]
    return train, [pair for pair, prompt in zip(pairs, asked, strict=True) if prompt not in kept]


def openings(pairs: Sequence[Pair], words: int | None) -> list[Pair]:
    """Pairs with both responses cut to `words` words, except those whose cuts are equal; empty if None."""
    if words is None:
        return []
    cut = [Pair(pair.prompt, _opening(pair.chosen, words), _opening(pair.rejected, words)) for pair in pairs]
    return [pair for pair in cut if pair.chosen != pair.rejected]


def _opening(response: Sequence[Message], words: int) -> list[Message]:
    return [Message(role="assistant", content=" ".join(response[0]["content"].split()[:words]))]


def _fit(card: TrainedCard, rows: Sequence[tuple[Pair, float]], epochs: float, folder: Path, where: str) -> None:
    """Train on pairs, each with its margin."""
    from datasets import Dataset, disable_progress_bars
    from transformers.trainer_callback import PrinterCallback
    from trl import RewardConfig, RewardTrainer

    disable_progress_bars()
    torch.manual_seed(card.seed)
    tokenizer = load_tokenizer(card.base, f"{where}: base")
    # TRL's collator passes only ids and mask. Drop token types here too, so that scoring matches training.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UsageError(f"{where}: base: the tokenizer of {card.base!r} has neither a padding nor an end token")
    cuda = torch.cuda.is_available()
    with contextlib.ExitStack() as silence:
        silence.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity_error()  # the new head is intended; no warning
        silence.enter_context(quiet())
        silence.enter_context(warnings.catch_warnings())
        silence.enter_context(contextlib.redirect_stderr(io.StringIO()))
        # TRL sets an option's deprecated name even if it is not given.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
        model = load_model_of(
            AutoModelForSequenceClassification, card.base, f"{where}: base", head="trained", num_labels=1
        )
        check_vocabulary(model, tokenizer, f"{where}: base: {card.base!r}")
        if card.layers is not None:
            keep_layers(model, card.layers, f"{where}: {card.base!r}")
        texts = [_tokens(card, tokenizer, pair) for pair, _ in rows]
        if max(len(ids) for text in texts for ids in text.values()) > context_of(model):
            raise UsageError(
                f"{where}: max_tokens: {card.max_tokens} given, and a pair has more than the {context_of(model)} "
                f"tokens that {card.base!r} reads"
            )
        if card.trained_layers is not None:
            ids = [found for text in texts for found in text.values()]
            silence.enter_context(
                top_layers(model, card.trained_layers, ids, tokenizer.pad_token_id, f"{where}: {card.base!r}")
            )
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                output_dir=str(folder / "trainer"),
                num_train_epochs=epochs,
                learning_rate=card.learning_rate,
                per_device_train_batch_size=card.batch_size,
                warmup_steps=0.1,
                max_length=None,
                seed=card.seed,
                bf16=cuda,
                dataloader_pin_memory=cuda,
                gradient_checkpointing=False,
                disable_tqdm=True,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=Dataset.from_list(
                [text | {"margin": margin} for text, (_, margin) in zip(texts, rows, strict=True)]
            ),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(folder / "trainer", ignore_errors=True)


def _tokens(card: TrainedCard, tokenizer: PreTrainedTokenizerBase, pair: Pair) -> dict[str, list[int]]:
    return {
        f"{name}_ids": _inputs(card, tokenizer, pair, response)[0]["input_ids"]
        for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }


def _inputs(
    card: TrainedCard, tokenizer: PreTrainedTokenizerBase, pair: Pair, response: list[Message]
) -> tuple[dict[str, list[int]], bool]:
    return classifier_inputs(tokenizer, pair.prompt, response, kind=card.input, limit=card.max_tokens, end_token=False)


def score_pairs(model: SequenceClassifier, pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Raw scores of the chosen and of the rejected responses."""
    prompts = [pair.prompt for pair in pairs]
    scores = model.score(prompts * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs])
    return scores[: len(pairs)], scores[len(pairs) :]


def accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> Accuracy:
    """How often the chosen response scores higher."""
    wins = sum((c > r) + 0.5 * (c == r) for c, r in zip(chosen, rejected, strict=True))
    interval = binomtest(round(wins), len(chosen)).proportion_ci(0.95, method="wilson")
    return Accuracy(wins / len(chosen), float(interval.low), float(interval.high), len(chosen))


def reliability(chosen: Sequence[float], rejected: Sequence[float]) -> list[Bin]:
    """Calibration: accuracy by confidence, in non-empty bins of equal width over confidence 0.5 to 1."""
    difference = np.subtract(chosen, rejected)
    confidence = expit(np.abs(difference))
    place = np.minimum((confidence - 0.5) * 2 * _BINS, _BINS - 1).astype(int)
    return [
        Bin(float(confidence[here].mean()), float((difference[here] > 0).mean()), int(here.sum()))
        for here in (place == number for number in np.unique(place))
    ]
