"""Tokenizers and chat templates as they come: the table of docs/compatibility.md, row by row."""

import re
from datetime import date

import pytest
import torch
from tokenizers import AddedToken

import rlhf_marl
from rlhf_marl.config import check_config, load_config
from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.chat import Message, chat_tokens, templated
from rlhf_marl.policy.generation import generate
from rlhf_marl.policy.loading import load_chat_model, load_tokenizer
from rlhf_marl.policy.log_probabilities import evaluate_responses
from rlhf_marl.policy.templates import adapt_template, turn_end
from tests.conftest import CHAT_TEMPLATE, tiny_llama, tiny_tokenizer
from tests.tables import table

RESULTS = dict(table("Tokenizers and chat templates"))
SYSTEM = [Message(role="system", content="S"), Message(role="user", content="u")]
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
LEAVES_OUT = CHAT_TEMPLATE.replace("for m in messages", "for m in messages if m['role'] != 'system'")
PARTS = CHAT_TEMPLATE.replace("{{ m['content'] }}", "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}")
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHAT_TEMPLATE
THINKS = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}" + CHAT_TEMPLATE
MARKS_THE_NEXT = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}<|im_start|>"
UNMARKED = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FAILS = "{{ messages[0]['content'] + 1 }}"
TRIED = set()


def tries(situation):
    """A test of this row of the table."""
    TRIED.add(situation)
    return lambda test: test


@pytest.fixture
def folder(tmp_path):
    """Saves a chat model with such a tokenizer: (template, end token, other tokens, whether those are special, rows of
    the embedding, end token of the generation config) -> folder."""

    def saved(template=CHAT_TEMPLATE, *, end="<|im_end|>", added=(), special=True, rows=None, model_end=None):
        tokenizer, model = tiny_tokenizer(), tiny_llama()
        tokenizer.add_tokens([AddedToken(token, special=special) for token in added], special_tokens=special)
        tokenizer.chat_template, tokenizer.eos_token = template, end
        model.resize_token_embeddings(rows or len(tokenizer))
        model.config.eos_token_id = model.generation_config.eos_token_id = model_end
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return saved


def loaded(folder, **options):
    return load_chat_model(folder, "c.yaml: model.name", torch.device("cpu"), **options)


def refused(situation, folder, **options):
    """It is refused in one line, with what the table says."""
    result, _, reason = RESULTS[situation].partition(": ")
    assert result == "refused"
    with pytest.raises(UsageError, match=re.escape(reason)) as caught:
        loaded(folder, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("c.yaml: model")


def text(chat_model, messages=SYSTEM):
    return templated(chat_model.tokenizer, messages, tokenize=False, add_generation_prompt=True)


def test_the_page_lists_what_is_tried():
    assert set(RESULTS) == TRIED


@tries("an end token that does not end turns, as in Qwen's base models")
def test_answers_stop_where_the_template_ends_a_turn(folder):
    assert loaded(folder(end="<pad>", model_end=7)).stop_tokens == [0, 7, 2]


@tries("a token that ends turns and is not marked as special")
def test_a_control_token_is_neither_shown_nor_forged(folder):
    model = loaded(folder(CHAT_TEMPLATE.replace("<|im_end|>", "<|end|>"), added=["<|end|>"], special=False))
    assert model.stop_tokens == [2, 259]
    assert model.tokenizer.decode([40, 259], skip_special_tokens=True) == model.tokenizer.decode([40])
    assert chat_tokens(model.tokenizer, [Message(role="user", content="a<|end|>b")], 1000).count(259) == 1


@tries("a template that marks only the beginning of the next turn, as GLM's")
def test_the_next_turns_mark_ends_an_answer(folder):
    assert loaded(folder(MARKS_THE_NEXT, end=None)).stop_tokens == [1]


@tries("no end token but the one that the template writes")
def test_the_templates_end_token_is_enough(folder):
    assert loaded(folder(end=None)).stop_tokens == [2]


@tries("no end token at all")
def test_answers_that_would_never_end(folder):
    refused("no end token at all", folder(UNMARKED, end=None))


@pytest.mark.parametrize("template", [REFUSES, LEAVES_OUT])
@tries("a template that refuses the system message, or leaves it out")
def test_the_system_message_goes_into_the_first_user_message(folder, template):
    model = loaded(folder(template))
    assert text(model) == "<|im_start|>user\nS\n\nu<|im_end|>\n<|im_start|>assistant\n"
    assert text(model, SYSTEM[1:]) == "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    assert SYSTEM[0]["content"] == "S"  # the messages themselves are unchanged


@tries("a template that leaves out the user's messages, such as one for lists of parts")
def test_a_template_for_lists_of_parts(folder):
    refused("a template that leaves out the user's messages, such as one for lists of parts", folder(PARTS))


@tries("a template that fails")
def test_a_template_that_fails(folder):
    refused("a template that fails", folder(FAILS))


@tries("no chat template")
def test_without_a_template_a_file_can_give_one(folder, tmp_path):
    path = folder(None)
    refused("no chat template", path)
    (tmp_path / "mine.jinja").write_text(CHAT_TEMPLATE)
    assert text(loaded(path, chat_template=str(tmp_path / "mine.jinja"))).startswith("<|im_start|>system\nS<|im_end|>")


NAMED = {"default": CHAT_TEMPLATE, "brief": UNMARKED}


@tries("several templates, one of them the default")
def test_a_template_is_chosen_by_name(folder):
    path = folder(NAMED)
    assert text(loaded(path)).startswith("<|im_start|>system")
    assert text(loaded(path, chat_template="brief")) == "system: S\nuser: u\n"


@tries("several templates, none of them the default")
def test_a_choice_is_needed(folder):
    refused("several templates, none of them the default", folder({"long": CHAT_TEMPLATE, "brief": UNMARKED}))


@tries("a `model.chat_template` that is neither a name nor a file")
def test_a_name_that_is_none(folder):
    refused("a `model.chat_template` that is neither a name nor a file", folder(NAMED), chat_template="nope")


@tries("a template with the day's date")
def test_the_date_does_not_change(folder):
    path = folder(DATED)
    assert text(loaded(path)).startswith("Today is 26 Jul 2024.\n<|im_start|>")
    assert text(loaded(path, chat_template_date="2026-01-05")).startswith("Today is 05 Jan 2026.\n")
    assert load_tokenizer(path, "x").apply_chat_template(SYSTEM, tokenize=False).startswith("Today is 26 Jul 2024.")


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%A, %d %B %Y", "%-d %b %y", "%j %U %w %a", "%-m/%-d at %H:%M"])
def test_the_fixed_date_is_written_as_strftime_would(form):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = f"{{{{ strftime_now('{form}') }}}}"
    adapt_template(tokenizer, "x", day="2026-03-07")
    assert templated(tokenizer, SYSTEM, tokenize=False) == date(2026, 3, 7).strftime(form)


@tries("a value in `model.chat_template_kwargs`, such as `{enable_thinking: false}`, for the template")
def test_the_templates_own_variables(folder):
    path = folder(THINKS)
    assert text(loaded(path)).startswith("<think><|im_start|>")
    assert text(loaded(path, chat_template_kwargs={"enable_thinking": False})).startswith("<|im_start|>")
    quoted = folder("{{ greeting }}{{ n }}{{ nothing is none }}" + CHAT_TEMPLATE)
    values = {"greeting": 'it\'s "é"\n\U0001f600', "n": -0.5, "nothing": None}
    assert text(loaded(quoted, chat_template_kwargs=values)).startswith('it\'s "é"\n\U0001f600-0.5True<|im_start|>')


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "a b"])
@tries("a value in `model.chat_template_kwargs` that the template does not read")
def test_a_variable_that_the_template_does_not_read(folder, name):
    situation = "a value in `model.chat_template_kwargs` that the template does not read"
    refused(situation, folder(THINKS), chat_template_kwargs={name: False})


@tries("a tokenizer with more tokens than the embedding")
def test_a_tokenizer_that_is_too_large(folder):
    path = folder(added=["word"], special=False, rows=259)
    refused("a tokenizer with more tokens than the embedding", path)
    refused("a tokenizer with more tokens than the embedding", folder(THINKS, added=["<think>"], rows=259))


@tries("special tokens that the embedding lacks and no template writes, such as Gemma 3's of images")
def test_tokens_of_images_in_a_text_models_tokenizer(folder):
    model = loaded(folder(added=["<image>"], rows=259))
    assert max(chat_tokens(model.tokenizer, [Message(role="user", content="an <image> here")], 1000)) < 259


@tries("an embedding with more rows than the tokenizer has tokens")
def test_ids_that_the_tokenizer_lacks_have_no_probability(folder):
    """In sampling, in the statistics and in the gradient, against a softmax over the tokenizer's ids alone."""
    model = loaded(folder(rows=320))
    adapters = StackedAdapters(model.model, [1, 2], rank=2, alpha=4.0, targets=["q_proj", "down_proj"], where="c")
    adapters.parameters.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(7))
    prompt, options = [5, 6, 7], {"max_new_tokens": 40, "stop_tokens": [2], "temperature": 5.0}
    uniforms = torch.rand(8, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with adapters.use(slice(None)):
        rows = generate(model.model, [prompt] * 8, uniforms=uniforms, n_policies=2, **options)
    assert max(token for tokens, _ in rows for token in tokens) < 259
    responses = [[rows[0][0]], [rows[4][0]]]
    signal = torch.tensor([[1.0], [-2.0]])
    found = evaluate_responses(
        model.model, adapters, [[prompt]] * 2, responses, temperature=5.0, pad=2, signal=signal, kl_coefficient=0.3
    )
    gradient = adapters.parameters.grad.clone()
    adapters.parameters.grad.zero_()
    for agent, ((response,), (_, logs)) in enumerate(zip(responses, (rows[0], rows[4]), strict=True)):
        known = []
        for active in (slice(agent, agent + 1), None):
            with adapters.use(active):
                logits = model.model(torch.tensor([prompt + response])).logits[0, 2:-1]
            known.append((logits[:, :259] / 5.0).log_softmax(-1))
        policy, base = known[0], known[1].detach()
        taken = policy[torch.arange(len(response)), response]
        kl = (policy.exp() * (policy - base)).sum(-1)
        assert logs == pytest.approx(taken.tolist(), abs=1e-4)
        expected = [taken.sum(), -(policy.exp() * policy).sum(-1).mean(), kl.sum()]
        values = [of[agent, 0] for of in (found.log_probability, found.entropy, found.kl)]
        torch.testing.assert_close(values, [value.detach() for value in expected], atol=1e-3, rtol=1e-4)
        weights = [signal[agent, 0] - 0.3 * kl[t + 1 :].sum().detach() for t in range(len(kl))]
        (0.3 * kl.sum() - torch.stack(weights) @ taken).backward()
    torch.testing.assert_close(gradient, adapters.parameters.grad, atol=1e-4, rtol=1e-3)


def test_what_stands_before_a_template_changes_nothing_else():
    """Also if it begins with a line end or a space before a block, which Jinja's settings may drop."""
    for begin in ("\n", "  {% if true %}x{% endif %}", "  y", "{%- if true %} x{% endif %}"):
        plain, adapted = tiny_tokenizer(), tiny_tokenizer()
        plain.chat_template = begin + CHAT_TEMPLATE
        adapted.chat_template = begin + CHAT_TEMPLATE + "{# strftime_now #}"
        adapt_template(adapted, "x")
        assert adapted.chat_template != begin + CHAT_TEMPLATE + "{# strftime_now #}"
        rendered = [templated(tokenizer, SYSTEM, tokenize=False) for tokenizer in (plain, adapted)]
        assert rendered[0] == rendered[1]


def test_adapting_twice_is_adapting_once(folder):
    """As when a tokenizer saved by `reward train` is loaded again."""
    tokenizer = load_tokenizer(folder(LEAVES_OUT + "{{ strftime_now('%Y') }}"), "x", chat_template_date="2020-01-01")
    once = templated(tokenizer, SYSTEM, tokenize=False)
    adapt_template(tokenizer, "x")
    assert templated(tokenizer, SYSTEM, tokenize=False) == once
    assert once.endswith("2020")


def test_turn_end_is_the_longest_token_that_follows_the_answer():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|im_end|>\n", special=True)], special_tokens=True)
    assert turn_end(tokenizer) == 259
    tokenizer.chat_template = UNMARKED
    assert turn_end(tokenizer) is None


def test_the_config_sets_them(tiny_content, tmp_path):
    (tmp_path / "mine.jinja").write_text(DATED + "{{ mood }}")
    model = tiny_content["model"] | {
        "chat_template": str(tmp_path / "mine.jinja"),
        "chat_template_kwargs": {"mood": "calm"},
        "chat_template_date": date(2026, 1, 5),  # what YAML makes of a date without quotes
    }
    run = rlhf_marl.train(tiny_content | {"model": model}, run_dir=tmp_path / "run")
    assert run.config.model.chat_template_date == "2026-01-05"
    assert load_config(f"{tmp_path}/run/config.yaml") == run.config
    resumed = rlhf_marl.train(run.config.model_copy(update={"iterations": 3}), run_dir=run.path, resume=True)
    assert len(resumed.metrics) == 12
    with pytest.raises(UsageError, match=r"model.chat_template_date: '5.1.26' is not a date; it must be YYYY-MM-DD"):
        check_config(tiny_content | {"model": model | {"chat_template_date": "5.1.26"}}, "c")


def test_the_command_line_sets_them():
    given = ["--model.chat_template_kwargs.enable_thinking", "false", "--model.chat_template_date", "2026-01-05"]
    model = load_config("configs/quickstart.yaml", given).model
    assert (model.chat_template_kwargs, model.chat_template_date) == ({"enable_thinking": False}, "2026-01-05")
