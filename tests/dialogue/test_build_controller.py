"""Each kind of controller that a config can choose."""

import pytest
import torch

from rlhf_marl.config.schema import (
    CallableController,
    ModelConfig,
    OpenAIController,
    ScriptedController,
    SharedController,
    TransformersController,
)
from rlhf_marl.dialogue import controller as controllers
from rlhf_marl.dialogue.build_controller import build_controller, prepare_controller
from rlhf_marl.dialogue.controller import Exchange
from rlhf_marl.errors import UsageError
from rlhf_marl.policy.chat import Message
from rlhf_marl.services.journal import UNRECORDED
from tests.conftest import tiny_sampler

NAMES = ["Ada", "Ben"]
EXCHANGE = Exchange([Message(role="user", content="why?")], ["first", "second"])
TEMPLATES = "aggregate: {system: S, user: '{{ prompt }}'}\nnext_prompt: {system: T, user: '{{ aggregate }}'}\n"


@pytest.fixture
def limits(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(TEMPLATES)
    return {"templates": str(path), "aggregate_tokens": 4, "next_prompt_tokens": 3}


def built(config, base=None):
    prepared = prepare_controller(config, NAMES, "c")
    return build_controller(config, prepared, base, torch.device("cpu"), "c", UNRECORDED)


def merged(controller, *, last=False):
    (result,) = controller.merge([EXCHANGE], turn=0, last=last)
    return result.aggregate, result.next_prompt


def test_scripted():
    config = ScriptedController(kind="scripted", aggregate="{{ responses[1] }}", next_prompts=["{{ prompt }}!"])
    assert merged(built(config)) == ("second", "why?!")


def test_callable_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def merge(messages, responses, *, turn, last):\n    return ' '.join(responses), 'and?'\n")
    controller = built(CallableController(kind="callable", function=f"{path}:merge"))
    assert merged(controller) == ("first second", "and?")
    assert merged(controller, last=True) == ("first second", None)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_module:merge", "cannot import 'no_such_module:merge': ModuleNotFoundError"),
        ("json:nothing", "cannot import 'json:nothing': AttributeError"),
        ("json:__name__", "'json:__name__' is not a function"),
    ],
)
def test_a_function_that_is_not_there_names_the_key(function, message):
    with pytest.raises(UsageError, match=f"^c: controller.function: {message}"):
        built(CallableController(kind="callable", function=function))


def test_a_callables_function_is_imported_before_any_model_loads():
    import json

    assert prepare_controller(CallableController(kind="callable", function="json:dumps"), NAMES, "c") is json.dumps


class FakeSampler:
    """A sampler for LocalChat that answers with the prompts' lengths."""

    tokenizer, context_length = tiny_sampler().tokenizer, 512

    def __init__(self):
        self.asked = []

    def sample(self, prompts, keys, **options):
        self.asked.append((self.tokenizer.batch_decode(prompts), options["max_new_tokens"], options["agents"]))
        return [type("Text", (), {"text": f"answer {len(self.asked)}"})() for _ in prompts]


def test_shared_speaks_with_the_agents_base_model(limits):
    base = FakeSampler()
    assert merged(built(SharedController(**limits), base)) == ("answer 1", "answer 2")
    ((first,), tokens, agents), ((second,), more, _) = base.asked
    assert "S" in first
    assert "why?" in first
    assert "answer 1" in second
    assert (tokens, more, agents) == (4, 3, None)


def test_transformers_speaks_with_a_model_of_its_own(limits, tiny_model_folder):
    """The same weights as the base model's: the same words, though no base is given."""
    own = built(TransformersController(kind="transformers", model=ModelConfig(name=str(tiny_model_folder)), **limits))
    shared = built(SharedController(**limits), tiny_sampler())
    assert merged(own) == merged(shared)


@pytest.mark.parametrize("key", ["aggregate_tokens", "next_prompt_tokens"])
def test_an_answer_that_leaves_no_room_for_its_prompt_is_refused(limits, tiny_model_folder, key):
    own = ModelConfig(name=str(tiny_model_folder))
    message = rf"^c: controller.{key}: 512 given; the model's context has 512 tokens"
    with pytest.raises(UsageError, match=message):
        built(SharedController(**limits | {key: 512}), tiny_sampler())
    with pytest.raises(UsageError, match=message):
        built(TransformersController(kind="transformers", model=own, **limits | {key: 512}))


def test_openai_needs_its_key(limits, monkeypatch):
    config = OpenAIController(kind="openai", model="m", api_key_env="NO_SUCH_KEY", **limits)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UsageError, match=r"^c: controller.*NO_SUCH_KEY"):
        built(config)
    monkeypatch.setenv("NO_SUCH_KEY", "secret")
    assert isinstance(built(config), controllers.ChatController)


def test_a_missing_template_file_names_the_key():
    with pytest.raises(UsageError, match=r"^c: controller.templates: 'no.yaml' does not exist"):
        prepare_controller(SharedController(templates="no.yaml"), NAMES, "c")


@pytest.mark.parametrize(
    "change", [{"aggregate": "{{ responses[2] }}"}, {"next_prompts": ["fine", "{{ aggregate }}"]}, {"aggregate": "{%"}]
)
def test_mistakes_in_a_script_are_reported_before_the_run(change):
    """With as many responses as there are agents: two."""
    config = ScriptedController(**{"kind": "scripted", "next_prompts": ["-"]} | change)
    with pytest.raises(UsageError, match=r"^c: controller: template error: ") as caught:
        prepare_controller(config, NAMES, "c")
    assert "\n" not in str(caught.value)
    fine = ScriptedController(kind="scripted", aggregate="{{ responses[2] }}", next_prompts=["-"])
    assert prepare_controller(fine, ["a", "b", "c"], "c") is None
