"""Chat templates: the same text as transformers, and nothing a template does can hurt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_gguf_tokenizer import small

from nextword.base import RunError, UsageError
from nextword.text import Tokenizer, jinja, render_chat, tokenizer_from_gguf

# Written for these tests after the formats' public descriptions.
TEMPLATES = {file.stem: file.read_text() for file in (Path(__file__).parent / "templates").glob("*.jinja")}

TALK = [
    {"role": "system", "content": " You are terse. "},
    {"role": "user", "content": "Wer bist du? <b>&</b> 🤷🏽"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nNiemand."},
    {"role": "user", "content": "  Warum?\n"},
]
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"x": [1, 2.5, None, True]}}}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_from_gguf(small(), "model.gguf")


def theirs(template: str, messages: list[dict[str, Any]], **extra: Any) -> str:
    """What transformers makes of a template."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    engine = Engine(models.BPE(vocab={"<|im_end|>": 0}, merges=[]))
    oracle = PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<|im_end|>", eos_token="<|im_end|>")
    text = oracle.apply_chat_template(messages, chat_template=template, tokenize=False, **extra)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("talk", [TALK, TALK[1:], TALK[1:2], TALK[:3]], ids=["all", "no system", "one", "answered"])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_give_what_transformers_gives(tokenizer, name, talk, prompt):
    ours = render_chat(tokenizer, talk, add_generation_prompt=prompt, chat_template=TEMPLATES[name])
    assert ours == theirs(TEMPLATES[name], talk, add_generation_prompt=prompt)


@pytest.mark.parametrize("extra", [{"tools": TOOLS}, {"enable_thinking": False}, {"date_string": "1 Jan 2030"}])
@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_further_variables_reach_the_template(tokenizer, name, extra):
    ours = render_chat(tokenizer, TALK, chat_template=TEMPLATES[name], **extra)
    assert ours == theirs(TEMPLATES[name], TALK, add_generation_prompt=True, **extra)


def test_the_real_models_template_gives_what_transformers_gives(smollm2_path):
    from nextword.weights.gguf import GGUFFile

    file = GGUFFile.open(smollm2_path)
    real = tokenizer_from_gguf(file.metadata, smollm2_path)
    assert real.chat_template is not None
    text = render_chat(real, TALK[1:])
    assert text == theirs(real.chat_template, TALK[1:], add_generation_prompt=True)
    assert real.decode(real.encode(text, special=True), special=True) == text


def test_the_date_is_todays(tokenizer):
    assert render_chat(tokenizer, [], chat_template="{{ strftime_now('%Y') }}") == time.strftime("%Y")


def test_a_named_template_is_found_and_a_missing_one_is_a_clear_line(tokenizer):
    named = tokenizer_from_gguf(small() | {"tokenizer.chat_template.brief": "brief"}, "model.gguf")
    assert render_chat(named, [], chat_template="brief") == "brief"
    with pytest.raises(UsageError, match=r"model\.gguf has no chat template\. Name one of: brief\."):
        render_chat(named, [])
    with pytest.raises(UsageError, match="not a chat model"):
        render_chat(tokenizer, [])


FAILING = {
    "a syntax error": ("{% if %}", r"line 1"),
    "an exception of its own": ("{{ raise_exception('only\nusers') }}", "only users"),
    "an unknown name": ("{{ nothing.at.all }}", "'nothing' is undefined"),
    "an unknown filter": ("{{ 1 | strange }}", "strange"),
    "a wrong type": ("{{ 1 + 'a' }}", "unsupported operand"),
    "a large range": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "a large text": ("{{ 'a' * 10**10 }}", "too much memory"),
    "a large number": ("{{ (10 ** 6) ** (10 ** 6) ** 2 }}", "stopped|memory|digits"),
    "endless nesting": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests too deep"),
    "nested brackets": ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "nests too deep|fails"),
    "the classes of Python": ("{{ ''.__class__.__mro__ }}", "fails|unsafe|undefined"),
    "a change of the messages": ("{{ messages.append(1) }}", "unsafe|safely"),
    "memory by doubling": (
        "{% set ns = namespace(x='aaaa') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "too much memory",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_template_that_fails_is_one_line_that_names_the_model(tokenizer, name):
    template, reason = FAILING[name]
    with pytest.raises(UsageError, match=reason) as caught:
        render_chat(tokenizer, TALK, chat_template=template)
    assert "model.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


ENDLESS = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "one operation of the interpreter": "{{ 3 ** (3 ** 18) }}",
    "exponential calls": "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "exponential data": "{% set ns = namespace(x=[]) %}"
    "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_never_ends_is_stopped_and_leaves_no_process(tokenizer, name, monkeypatch):
    monkeypatch.setattr(jinja, "TIME_LIMIT", 0.5)
    render_chat(tokenizer, [], chat_template="started")
    process = jinja._worker._process
    assert process is not None
    with pytest.raises(UsageError, match=r"stopped|memory"):
        render_chat(tokenizer, TALK, chat_template=ENDLESS[name])
    jinja._worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert render_chat(tokenizer, TALK, chat_template="still here") == "still here"


def test_templates_render_from_any_thread_at_once(tokenizer):
    texts: dict[int, str] = {}

    def work(number: int) -> None:
        texts[number] = render_chat(
            tokenizer, [{"role": "user", "content": str(number)}], chat_template="{{ messages }}"
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: str([{"role": "user", "content": str(number)}]) for number in range(8)}


def test_one_template_leaves_nothing_for_the_next(tokenizer):
    assert render_chat(tokenizer, [], chat_template="{% set kept = 'secret' %}{{ kept }}") == "secret"
    assert render_chat(tokenizer, [], chat_template="{{ kept is defined }}") == "False"


def test_long_conversations_pass_through(tokenizer):
    talk = [{"role": "user", "content": "漢字 " * 1000}] * 300
    text = render_chat(tokenizer, talk, chat_template=TEMPLATES["chatml"])
    assert text == theirs(TEMPLATES["chatml"], talk, add_generation_prompt=True)


def test_a_helper_that_was_killed_is_replaced(tokenizer):
    render_chat(tokenizer, [], chat_template="first")
    process = jinja._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert render_chat(tokenizer, [], chat_template="second") == "second"


def test_messages_that_are_no_plain_data_are_refused(tokenizer):
    with pytest.raises(UsageError, match="not plain data"):
        render_chat(tokenizer, [{"role": "user", "content": object()}], chat_template="x")


def test_a_helper_that_cannot_start_is_a_failure_at_run_time(tokenizer, monkeypatch):
    jinja._worker.close()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RunError, match="does not start"):
        render_chat(tokenizer, [], chat_template="x")


SCRIPT = """
import sys
from nextword.text.jinja import _worker, render
print(render("text", {}, "model"), _worker._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_the_helper_goes_when_the_program_goes(end):
    program = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with program:
        assert program.stdout is not None
        helper = int(program.stdout.readline().split()[1])
        if end == "is killed":
            program.kill()
        program.communicate(timeout=30)
    assert program.returncode == (0 if end == "leaves" else -signal.SIGKILL)
    with suppress(FileNotFoundError):
        for _ in range(300):
            if Path(f"/proc/{helper}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return  # ended, though nobody has asked for its exit code
            time.sleep(0.1)
        pytest.fail("the helper process is still there")


def test_the_sandbox_is_not_loaded_into_this_process():
    code = "import sys, nextword.text; raise SystemExit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FORKING = """
import os
from nextword.text.jinja import _worker, render
render("text", {}, "model")
child = os.fork()
if not child:
    raise SystemExit(render("from the child", {}, "model") != "from the child")
assert os.waitpid(child, 0)[1] == 0
print(render("from the parent", {}, "model"))
"""


def test_a_forked_process_takes_a_helper_of_its_own():
    result = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "from the parent\n"
