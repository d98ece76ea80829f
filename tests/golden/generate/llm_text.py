"""Golden numbers for tokenizers, chat templates and the encoding of rows.

    HF_HUB_OFFLINE=1 python tests/golden/generate/llm_text.py

writes `tests/golden/llm_text/`: a byte-level BPE tokenizer trained here on a few sentences, a word-level one, templates in
the formats of ChatML, Llama 3, Mistral and Zephyr (written for this file), and `cases.json` with what `transformers`
renders and tokenises and what TRL makes of prompts and completions. Needs torch-free `transformers`, `tokenizers`, `trl`
(see the versions in the output). Seed: none, nothing is drawn. Text and ids must agree exactly (tolerance 0).
"""

import json
import shutil
from datetime import datetime
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

OUT = Path(__file__).resolve().parent.parent / "llm_text"

CHATML = """{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] | trim -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = 'You help.' -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- if tools %}
    {{- raise_exception('tools are not for this template') }}
{%- endif %}
{%- for message in turns %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role + '\\n' }}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- generation -%}
    {{- content + '<|im_end|>' + '\\n' }}
    {%- endgeneration -%}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: tools\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0, seen=[]) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.get("tool_calls") is not none and message.get("tool_calls") is defined and message.tool_calls) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% else %}
{% continue %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

# Everything at once: what prints, what counts, what strings can do.
ODDITIES = """{#- a comment -#}
{% macro say(m, mark='*') %}{{ mark }}{{ m.role | upper }}{{ mark }}: {{ m.content.replace('\\n', ' / ') }}{% endmacro %}
{%- for m in messages -%}
    {%- if loop.index0 == 3 %}{% break %}{% endif -%}
    {{ loop.index }}/{{ loop.length }} {{ say(m) }} {{ loop.first }} {{ m.name is defined }} {{ none }} {{ m.content | length }}
    {{ m.content.startswith('H') }} {{ m.content[:4] }} {{ m.content[-1] }} {{ m.content.split(' ') | first }} {{ m.content.title() }}
    {% if loop.previtem is defined %}{{ loop.previtem.role }}{% endif +%}
    {{ m.items() | list | length }} {{ m | tojson }} {{ [m.role, 1, 2.5, true] }} {{ {'a': m.role, 'b': none} }}
{% endfor %}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ {'z': 1, 'a': [1, 'é', {'x': none}]} | tojson }} {{ {'z': 1, 'a': true} | tojson(indent=4) }}
{{ (range(5) | list)[::-1] }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }} {{ 'a' * 3 if false else 'b' ~ 1 }} {{ unknown_name | default('d') }}
{{ strftime_now('%Y-%m-%d %B %A %H:%M %j %-d') }}
"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "zephyr": ZEPHYR, "oddities": ODDITIES}


def message(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [message("user", "Hi there, what is 2 + 2?")],
    [message("system", "  Be brief.\n"), message("user", "Name a colour.")],
    [message("user", "Hello"), message("assistant", "Hello! How can I help?"), message("user", "Say it again")],
    [
        message("system", "Antworte überlegt — 日本語 auch."),
        message("user", "Wie spät?\nGenau, bitte."),
        message("assistant", "<think>\nhm\n</think>\n\nZehn nach vier 😀."),
        message("user", 'Quote "this" & <that>'),
        message("assistant", "  It's \"this\"\t& <that>.  "),
    ],
    [message("user", ""), message("assistant", "x")],
    [message("user", "a"), message("user", "b")],
    [message("assistant", "I begin"), message("user", "ok")],
    [message("system", "only the system")],
    [message("user", "q"), message("tool", '{"t": 1}')],
]

CORPUS = [
    "Hi there, what is two plus two?",
    "Hello! How can I help you today?",
    "Name a colour. Blue is a colour, and green is a colour too.",
    "Wie spät ist es? Zehn nach vier.",
    "the cat sat on a mat and said hello to the other cat",
    'Quote "this" and that: it is what it is.',
] * 4

SPECIALS = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

FIXED = datetime(2024, 7, 26)


class FixedDate(datetime):
    """The clock that `strftime_now` looks at, stopped."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def byte_level(folder):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, tokenizer.token_to_id("<|eot_id|>")]}) + "\n")


def word_level(folder):
    words = ["<pad>", "<s>", "</s>", "<unk>", "red", "green", "blue", "colour", "is", "a", "."]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


def common_prefix_length(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    byte_level(OUT / "bytes")
    word_level(OUT / "words")
    for name, source in TEMPLATES.items():
        (OUT / f"{name}.jinja").write_text(source, encoding="utf-8")
    chat_template_utils.datetime = FixedDate

    tokenizer = PreTrainedTokenizerFast.from_pretrained(OUT / "bytes")
    words = PreTrainedTokenizerFast.from_pretrained(OUT / "words")
    rendered = []
    for name, source in TEMPLATES.items():
        for at, conversation in enumerate(CONVERSATIONS):
            for generation in [False, True]:
                case = {"template": name, "conversation": at, "add_generation_prompt": generation}
                arguments = dict(chat_template=source, add_generation_prompt=generation)
                try:
                    case["text"] = tokenizer.apply_chat_template(conversation, tokenize=False, **arguments)
                    case["ids"] = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False, **arguments)
                except Exception as error:
                    case["error"] = str(error)
                rendered.append(case)

    texts = ["", " ", "Hello there", "<s>Hello</s>", "überlegt 日本語 😀\n\n\ttab  two", "a</s></s>b <|im_end|>", "x" * 50]
    plain = [
        {"text": text, "ids": tokenizer(text)["input_ids"], "bare": tokenizer(text, add_special_tokens=False)["input_ids"]}
        for text in texts
    ]
    for case in plain:
        case["decoded"] = tokenizer.decode(case["ids"], clean_up_tokenization_spaces=False)
        case["skipped"] = tokenizer.decode(case["ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    word_texts = ["red is a colour .", " green\nblue </s>", "pink is red"]
    word_cases = [{"text": text, "ids": words(text)["input_ids"]} for text in word_texts]

    # As TRL's DPO trainer tokenises rows: jointly, end of sequence behind plain text, none behind conversations.
    rows = []
    for prompt, completion in [("Name a colour.", " Blue is a colour"), ("Hello", "! How can I help</s>"), ("Hi ", "there"), ("Hel", "lo you")]:
        ended = completion if completion.endswith("</s>") else completion + "</s>"
        prompt_ids, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + ended)["input_ids"]
        rows.append({"prompt": prompt, "completion": completion, "ids": ids, "prompt_len": common_prefix_length(prompt_ids, ids), "is_prefix": ids[: len(prompt_ids)] == prompt_ids, "prompt_ids": prompt_ids})
    for name in ["chatml", "llama3", "mistral", "zephyr"]:
        prompt, completion = CONVERSATIONS[2], [message("assistant", "Hello again")]
        arguments = dict(chat_template=TEMPLATES[name], tokenize=True, return_dict=False)
        prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **arguments)
        ids = tokenizer.apply_chat_template(prompt + completion, **arguments)
        rows.append({"template": name, "prompt": prompt, "completion": completion, "ids": ids, "prompt_len": common_prefix_length(prompt_ids, ids), "is_prefix": ids[: len(prompt_ids)] == prompt_ids, "prompt_ids": prompt_ids})

    cases = {
        "generator": "tests/golden/generate/llm_text.py",
        "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
        "seed": None,
        "tolerance": 0,
        "date": FIXED.isoformat(),
        "conversations": CONVERSATIONS,
        "rendered": rendered,
        "plain": plain,
        "words": word_cases,
        "rows": rows,
    }
    (OUT / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
