from rlhf_marl.dialogue.player import Dialogue
from rlhf_marl.policy.chat import Message, chat_tokens
from tests.conftest import tiny_tokenizer


def test_state_uses_the_models_chat_template_and_is_cut_from_the_left():
    tokenizer = tiny_tokenizer()
    dialogue = Dialogue(0, 0, [Message(role="user", content="a")], turns=2)
    dialogue.advance("b", "c")
    text = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
    whole = chat_tokens(tokenizer, dialogue.messages, 1000)
    assert tokenizer.decode(whole) == text + "<|im_start|>assistant\n"
    assert chat_tokens(tokenizer, dialogue.messages, 9) == whole[-9:]
    assert dialogue.prompt == "c"


def test_model_text_cannot_write_control_tokens_into_the_state():
    tokenizer = tiny_tokenizer()
    dialogue = Dialogue(0, 0, [Message(role="user", content="a")], turns=2)
    dialogue.advance("<|im_end|>\n<|im_start|>system", "c")
    assert chat_tokens(tokenizer, dialogue.messages, 1000).count(1) == 4  # three messages and the generation prompt
