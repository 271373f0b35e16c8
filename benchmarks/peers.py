"""What a user would write otherwise, for dialogue.py: the same model and adapters through PEFT, TRL and CoMLRL.

All peers get plain transformers models: our packed layers are part of what is compared.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_marl.config import Config
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.loading import default_device, dtype_for, load_model_of
from rlhf_marl.policy.padding import left_pad
from rlhf_marl.rewards import RewardModel
from rlhf_marl.training.build import Experiment

NEVER = 0  # an id that no model here samples: every response has its full length
Rows = Sequence[Sequence[int]]


def plain_model(config: Config) -> PreTrainedModel:
    """The base model as transformers loads it."""
    given, device = config.model, default_device()
    dtype = dtype_for(given.dtype, device)
    model = load_model_of(AutoModelForCausalLM, given.name, "benchmark", dtype=dtype, revision=given.revision)
    return model.to(device).eval()


def fresh(config: Config, n: int) -> PeftModel:
    """The base model with n fresh adapters, agent_0 and so on."""
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=config.lora.targets,
        exclude_modules=config.lora.exclude,
        use_rslora=config.lora.use_rslora,
    )
    model = get_peft_model(plain_model(config), lora, adapter_name="agent_0")
    for agent in range(1, n):
        model.add_adapter(f"agent_{agent}", lora)
    return model.eval()


@contextmanager
def saved(adapters: StackedAdapters) -> Iterator[list[str]]:
    """The adapters as PEFT folders."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"agent_{agent}" for agent in range(adapters.n_agents)]
        for agent, path in enumerate(paths):
            adapters.save(agent, path, "base")
        yield [str(path) for path in paths]


def one_model(config: Config, adapters: StackedAdapters) -> PeftModel:
    """All adapters in one PEFT model."""
    with saved(adapters) as folders:
        model = PeftModel.from_pretrained(plain_model(config), folders[0], adapter_name="agent_0", is_trainable=True)
        for agent, folder in enumerate(folders[1:], 1):
            model.load_adapter(folder, adapter_name=f"agent_{agent}", is_trainable=True)
    return model


def copies(config: Config, adapters: StackedAdapters) -> list[PeftModel]:
    """A model of its own for each adapter."""
    with saved(adapters) as folders:
        return [PeftModel.from_pretrained(plain_model(config), folder, is_trainable=True) for folder in folders]


@torch.inference_mode()
def generate(model: PeftModel, prompts: Rows, tokens: int, adapter_names: list[str] | None = None) -> Tensor:
    """transformers' own sampling, (rows, prompt + tokens); with adapter_names PEFT's mixed batch."""
    ids, mask = left_pad(prompts, NEVER, model.device)
    mixed = {} if adapter_names is None else {"adapter_names": adapter_names}
    return model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=True, top_k=0, eos_token_id=NEVER,
        pad_token_id=NEVER, **mixed,
    )  # fmt: skip


def backward(
    model: PeftModel, prompts: Rows, responses: Rows, weights: Tensor, adapter_names: list[str] | None = None
) -> Tensor:
    """Log-probabilities of the responses, (rows,), and the gradient of their weighted sum; none for prompt tokens."""
    ids, mask = left_pad([[*p, *r] for p, r in zip(prompts, responses, strict=True)], NEVER, model.device)
    length = len(responses[0])
    mixed = {} if adapter_names is None else {"adapter_names": adapter_names}
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=length + 1, **mixed).logits[:, :-1]
    picked = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, -length:].unsqueeze(-1)).squeeze(-1)
    total = picked.sum(-1)
    (total * weights).sum().backward()
    return total.detach()


def trl_step(
    model: PeftModel, reward_model: RewardModel, experiment: Experiment, prompt: str, *, checkpointing: bool
) -> Callable[[], float]:
    """One RLOO step of one agent (generate, score, old and reference log-probabilities, update), in seconds."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    config, tokenizer = experiment.config, experiment.player.tokenizer
    n, generation = config.dialogues, config.generation

    class Clock(TrainerCallback):
        seconds: float

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.began

    def reward(prompts: list, completions: list, **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return reward_model.score([prompt] * len(texts), texts)

    clock = Clock()
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=reward,
        args=RLOOConfig(
            output_dir=tempfile.mkdtemp(prefix="trl-"),
            per_device_train_batch_size=n,
            num_generations=n,
            max_completion_length=generation.max_new_tokens,
            temperature=generation.temperature,
            generation_kwargs={"eos_token_id": NEVER},
            learning_rate=config.actor.step_size,
            beta=config.actor.kl_coefficient or 0.005,
            gradient_checkpointing=checkpointing,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            max_steps=1,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]}] * 2 * n),
        processing_class=tokenizer,
        callbacks=[clock],
    )

    trainer.remove_callback(PrinterCallback)

    def step() -> float:
        trainer.train()
        return clock.seconds

    return step


def comlrl_step(
    models: list[PeftModel], reward_models: Sequence[RewardModel], experiment: Experiment, prompt: str
) -> Callable[[], float]:
    """One MAREINFORCE step of all agents (generate, score, reference KL, update), in seconds.

    Raises ImportError where CoMLRL is not installed.
    """
    from comlrl.trainers.reinforce import MAREINFORCEConfig, MAREINFORCETrainer
    from datasets import Dataset

    config, tokenizer = experiment.config, experiment.player.tokenizer
    n, generation = config.dialogues, config.generation
    chat = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    def reward(*completions: list[str], **_: Any) -> list[float]:
        scores = [
            reward_model.score([prompt] * len(texts), list(texts))
            for reward_model, texts in zip(reward_models, completions, strict=True)
        ]
        return [sum(column) for column in zip(*scores, strict=True)]

    for model in models:
        model.generation_config.eos_token_id = NEVER
        model.generation_config.pad_token_id = NEVER
    trainer = MAREINFORCETrainer(
        agents=models,
        num_agents=len(models),
        tokenizer=tokenizer,
        reward_func=reward,
        formatters=[lambda item, **_: item["prompt"]] * len(models),
        train_dataset=Dataset.from_list([{"prompt": text}]),
        args=MAREINFORCEConfig(
            num_train_epochs=1,
            agent_learning_rate=config.actor.step_size,
            num_agents=len(models),
            num_generations=n,
            max_new_tokens=generation.max_new_tokens,
            temperature=generation.temperature,
            top_p=1.0,
            top_k=0,
            num_turns=1,
            eval_interval=0,
            rollout_buffer_size=1,
            reference_kl_enabled=True,
            reference_kl_coef=config.actor.kl_coefficient or 0.005,
            agent_devices=str(models[0].device),
        ),
    )

    trainer.verbose = False

    def step() -> float:
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began

    return step
