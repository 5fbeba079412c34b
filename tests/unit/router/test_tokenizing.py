from __future__ import annotations

import copy
import shutil

import pytest

from entropy_rft.errors import UserValueError
from entropy_rft.router.batching import FeatureError
from entropy_rft.router.dialects import chat, responses
from entropy_rft.router.tokenizing import _TEXTS, ChatTokenizer, Question
from entropy_rft.sampling import encode_prompt

USER = [{"role": "user", "content": "What is 17 + 25?"}]
TEMPLATE = (
    "{% if tools %}tools:{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %};{% endfor %}"
    "{% generation %}{% if thinking is defined %}thinking={{ thinking }}{% endif %}{%- endgeneration -%}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(random_model_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(random_model_dir)


@pytest.fixture(scope="module")
def shown(tokenizer):
    """``shown(question)``: what the model would see, through a template that shows everything."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    tokenize = ChatTokenizer(own)
    return lambda **fields: own.decode(tokenize(Question(**fields)))


def test_as_the_traces_were_collected(tokenizer):
    tokenize = ChatTokenizer(tokenizer)
    assert tokenize(Question(messages=USER)) == encode_prompt(tokenizer, USER)
    assert tokenize(Question(text="What is")) == encode_prompt(tokenizer, "What is")
    assert tokenize(Question(token_ids=[5, 6])) == [5, 6]


def test_messages_in_every_form(shown):
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "17 + 25?"}]
    assert shown(messages=[{"role": "user", "content": parts}]) == "user:What is\n17 + 25?;assistant:"
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 17}'}}
    several = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    assert shown(messages=several) == 'user:What is 17 + 25?;assistant:{"a": 17};tool:42;assistant:'
    call["function"]["arguments"] = "no JSON"
    assert 'assistant:"no JSON";' in shown(messages=several)
    assert shown(messages=USER, tools=[{"name": "add"}]).startswith('tools:[{"name": "add"}]user:')


@pytest.mark.parametrize(
    "part",
    [
        {"text": "hm"},
        {"type": "output_text", "text": "hm"},
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "refusal", "refusal": "hm"},
    ],
)
def test_every_part_that_the_dialects_take_for_text(shown, part):
    assert shown(messages=[*USER, {"role": "assistant", "content": [part]}]).endswith("assistant:hm;assistant:")


def test_the_tokenizer_takes_the_parts_of_all_dialects_for_text():
    assert {*chat._TEXT_PARTS, *responses._TEXT_PARTS} == {*_TEXTS}


def test_a_part_that_is_no_text(shown):
    for part in ({"type": "image_url", "image_url": {}}, {"type": "text"}, {"type": "thinking", "thinking": None}):
        with pytest.raises(FeatureError, match="something other than text"):
            shown(messages=[{"role": "user", "content": [part]}])


def test_a_tokenizer_that_the_installed_packages_cannot_read(random_model_dir, tmp_path):
    """`tokenizers` raises a plain Exception for it."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(random_model_dir / name, tmp_path)
    for text in ('{"version": "1.0", "model": {"type": "Later"}, "added_tokens": []}', '{"version": "1.0"}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserValueError, match="cannot be loaded") as caught:
            ChatTokenizer.from_pretrained(str(tmp_path))
        assert "\n" not in str(caught.value)


SHOWS = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] | trim }};{% endfor %}"


@pytest.mark.parametrize(
    ("template", "known"),
    [
        (SHOWS, True),
        ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + SHOWS, False),
        ("{% if messages[0]['role'] == 'system' %}{{ 1 / 0 }}{% endif %}" + SHOWS, False),
        ("{% for m in messages if m['role'] == 'user' %}### Instruction: {{ m['content'] }}{% endfor %}", False),
        ("{{ raise_exception('no conversation at all') }}", True),
        (None, True),
    ],
)
def test_whether_a_template_knows_the_system_role(tokenizer, template, known):
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    assert ChatTokenizer(own).knows_system_role is known


def test_only_the_templates_own_variables_are_the_clients(shown):
    own = {"chat_template": "evil", "tokenize": False, "add_generation_prompt": False, "messages": [], "unknown": 1}
    assert shown(messages=USER, chat_template_kwargs=own) == "user:What is 17 + 25?;assistant:"
    assert shown(messages=USER, chat_template_kwargs={**own, "thinking": False}).endswith("thinking=Falseassistant:")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:secret"}}]}]},
        {"messages": [{"role": "user", "content": [7]}]},
        {"messages": ["secret"]},
        {"messages": [{"role": "user", "content": {"secret": 1}}]},
        {"text": ""},
        {"token_ids": []},
    ],
)
def test_what_has_no_tokens(tokenizer, fields):
    with pytest.raises(FeatureError) as raised:
        ChatTokenizer(tokenizer)(Question(**fields))
    assert "secret" not in str(raised.value)


def test_a_model_without_a_template(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = None
    with pytest.raises(FeatureError, match="no chat template"):
        ChatTokenizer(own)(Question(messages=USER))
    assert ChatTokenizer(own)(Question(text="a"))
