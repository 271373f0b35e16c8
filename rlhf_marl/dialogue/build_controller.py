"""The controller that a config describes."""

import torch

from rlhf_marl.config.schema import (
    CallableController,
    ChatLimits,
    Controller,
    OpenAIController,
    ScriptedController,
    SharedController,
    TransformersController,
)
from rlhf_marl.dialogue import controller as controllers
from rlhf_marl.files.functions import load_function
from rlhf_marl.files.locate import find_data
from rlhf_marl.policy.instructions import render
from rlhf_marl.policy.loading import load_chat_model
from rlhf_marl.policy.sampler import LocalChat, Sampler, TransformersSampler
from rlhf_marl.services.endpoint import Endpoint
from rlhf_marl.services.journal import Journal


def load_controller_templates(config: Controller, n_agents: int, where: str) -> controllers.Templates | None:
    """The templates of a chat controller, read and compile-checked; those of a scripted one are checked only.

    Raises:
        UsageError: a missing file or a mistake in a template.
    """
    if isinstance(config, ScriptedController):
        example = {"prompt": "p", "responses": ["text"] * n_agents}
        for text in (config.aggregate, *config.next_prompts):
            render(text, f"{where}: controller", **example)
    if not isinstance(config, ChatLimits):
        return None
    return controllers.load_templates(find_data(config.templates, f"{where}: controller.templates"))


def build_controller(
    config: Controller,
    templates: controllers.Templates | None,
    base: Sampler,
    device: torch.device,
    where: str,
    journal: Journal,
) -> controllers.Controller:
    """base: of the agents' base model, which a shared controller speaks with. Raises UsageError."""
    match config:
        case ScriptedController():
            return controllers.ScriptedController(config.aggregate, config.next_prompts)
        case CallableController():
            function = load_function(config.function, f"{where}: controller.function")
            return controllers.CallableController(function, f"{where}: controller")
        case SharedController():
            chat: controllers.Chat = LocalChat(base)
        case TransformersController():
            model = load_chat_model(
                config.model.name,
                f"{where}: controller.model.name",
                device,
                dtype=config.model.dtype,
                revision=config.model.revision,
                trust_remote_code=config.model.trust_remote_code,
            )
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
    assert templates is not None
    return controllers.ChatController(
        chat,
        templates,
        aggregate_tokens=config.aggregate_tokens,
        next_prompt_tokens=config.next_prompt_tokens,
        max_response_characters=config.max_response_characters,
    )
