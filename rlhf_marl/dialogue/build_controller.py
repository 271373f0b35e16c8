"""Build the controller that a config describes."""

from collections.abc import Callable, Sequence

import torch

from rlhf_marl.config.schema import (
    CallableController,
    Controller,
    OpenAIController,
    ScriptedController,
    SharedController,
    TransformersController,
)
from rlhf_marl.dialogue import controller as controllers
from rlhf_marl.errors import UsageError
from rlhf_marl.files.functions import load_function
from rlhf_marl.files.locate import find_data
from rlhf_marl.policy.instructions import render
from rlhf_marl.policy.loading import load_chat_model
from rlhf_marl.policy.sampler import LocalChat, Sampler, TransformersSampler
from rlhf_marl.services.endpoint import Endpoint
from rlhf_marl.services.journal import Journal

Prepared = controllers.Templates | Callable[..., tuple[str, str | None]] | None


def prepare_controller(config: Controller, names: Sequence[str], where: str) -> Prepared:
    """Read and check what a controller needs besides models: a chat controller's templates, a callable's function.

    Args:
        names: of the agents.

    Raises:
        UsageError: a missing file, an invalid template, or a function that cannot be imported.
    """
    match config:
        case ScriptedController():
            example = {"prompt": "p", "responses": ["text"] * len(names), "names": names, "history": []}
            for text in (config.aggregate, *config.next_prompts):
                render(text, f"{where}: controller", **example)
            return None
        case CallableController():
            return load_function(config.function, f"{where}: controller.function")
        case _:
            return controllers.load_templates(find_data(config.templates, f"{where}: controller.templates"), names)


def build_controller(
    config: Controller,
    prepared: Prepared,
    base: Sampler | None,
    device: torch.device,
    where: str,
    journal: Journal,
) -> controllers.Controller:
    """base: sampler of the agents' base model, which only a shared controller needs.

    Raises:
        UsageError: a model is unusable.
    """
    match config:
        case ScriptedController():
            return controllers.ScriptedController(config.aggregate, config.next_prompts)
        case CallableController():
            assert callable(prepared)
            return controllers.CallableController(prepared, f"{where}: controller")
        case SharedController():
            assert base is not None
            check_limits(config, base.context_length, where)
            chat: controllers.Chat = LocalChat(base)
        case TransformersController():
            model = load_chat_model(
                config.model.name,
                f"{where}: controller.model.name",
                device,
                **config.model.model_dump(exclude={"name"}),
            )
            check_limits(config, model.context_length, where)
            chat = LocalChat(TransformersSampler(model))
        case OpenAIController():
            chat = controllers.endpoint_chat(
                Endpoint(
                    f"{where}: controller",
                    config.model,
                    api_key_env=config.api_key_env,
                    base_url=config.base_url,
                    timeout=config.timeout,
                    max_retries=config.max_retries,
                    journal=journal,
                )
            )
    assert isinstance(prepared, controllers.Templates)
    return controllers.ChatController(
        chat,
        prepared,
        aggregate_tokens=config.aggregate_tokens,
        next_prompt_tokens=config.next_prompt_tokens,
        max_response_characters=config.max_response_characters,
    )


def check_limits(config: SharedController | TransformersController, context_length: int, where: str) -> None:
    """Raise UsageError if an answer could fill the model's whole context, so that nothing of its prompt would fit."""
    for key, limit in config.model_dump(include={"aggregate_tokens", "next_prompt_tokens"}).items():
        if limit >= context_length:
            raise UsageError(
                f"{where}: controller.{key}: {limit} given; the model's context has {context_length} tokens, for the "
                "instruction and the answer"
            )
