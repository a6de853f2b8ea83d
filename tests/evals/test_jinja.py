"""Templates of task files: what Jinja itself makes of them, and neither code nor a full memory."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, StrictUndefined

from nextword.base import UsageError
from nextword.evals.jinja import fill
from nextword.evals.jinja_sandbox import regex_replace

ROW = {
    "q": 'who "goes" <there>?',
    "n": 3,
    "x": 2.5,
    "c": ["red", "blue sky"],
    "d": {"b": 1, "a": [None, True]},
    "e": None,
}
HARMLESS = (
    "{{q}}\n",
    "{{ q ~ ': ' ~ n ~ e ~ c }}",
    "{{ 'ab' * n }}{{ n * 'c' }}{{ [1] * 2 }}",
    "{{ c + ['x'] }}{{ n + x }}{{ q + '!' }}",
    "{{ 'In 2024: %s, %5.2f, %d%%' % (q, x, n) }}",
    "{{ '{} {:>8} {x!r}'.format(q, n, x=c) }}",
    "{{ ', '.join(c) }}{{ c|join(' or ') }}",
    "{{ c|map('upper')|join('-') }}",
    "{{ d|map('upper')|join }}",
    "{{ q.replace('o', '00') }}{{ q|replace('o', '0', 1) }}",
    "{{ q|indent(2) }}{{ q|center(30) }}{{ q.ljust(25) }}|{{ q|truncate(9) }}{{ q.zfill(30) }}",
    "{{ q|e }}{{ q|tojson }}{{ d|tojson }}{{ q|title }}",
    "{% for each in c %}{{ loop.index }}/{{ loop.length }} {{ each }}{{ ', ' if not loop.last }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}{% for a in [] %}{% else %}none{% endfor %}",
    "{% for each in c if 'e' in each %}{{ 'ABCD'[loop.index0] }}. {{ each }}\n{% endfor %}",
    "{{ range(4)|list }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ -n }}",
    "{% set ns = namespace(t='') %}{% for each in c %}{% set ns.t = ns.t ~ each %}{% endfor %}{{ ns.t }}",
    "{% set t %}a{{ q }}{% endset %}{{ t|length }}",
    "{% macro m(a, b=1) %}{{ a }}{{ b }}{% endmacro %}{{ m(q) }}{{ m(n, b=c) }}",
    "{{ missing|default('none') }}{{ missing is defined }}",
    "{% filter upper %}{{ q }}{% endfilter %}",
    "{{ q.split(' ')[-1] }}{{ c|length }}{{ c|first }}{{ x|round|int }}{{ c|batch(1)|list }}{{ d.a[1] }}",
    "{%- if n > 2 %}\nyes {% else %}no{% endif -%}  \n",
    "{{ q.strip().lower().capitalize() }}{{ e }}{{ d }}{{ True }}{{ 1e22 }}",
    "{% raw %}{{ q }}{% endraw %}{# none #}",
)


@pytest.mark.parametrize("source", HARMLESS)
def test_a_harmless_template_is_filled_as_jinja_fills_it(source: str) -> None:
    plain = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    assert fill(source, ROW) == plain.from_string(source).render(**ROW)


GROWING = (
    "ns.x ~ ns.x",
    "ns.x + ns.x",
    "[ns.x, ns.x]|join",
    "ns.x|replace('a', ns.x)",
    "ns.x.replace('a', ns.x)",
    "ns.x|join(ns.x)",
    "ns.x.join(ns.x)",
    "ns.x * 9",
    "'%s%s' % (ns.x, ns.x)",
    "'{0}{0}'.format(ns.x)",
    "ns.x|tojson|tojson|string ~ '\"'",
    "[ns.x, ns.x]",
    "ns.x|list + ns.x|list",
    r"ns.x|regex_replace('(a+)', '\\1\\1')",
    "{'a': ns.x, 'b': ns.x}",
)


@pytest.mark.parametrize("grown", GROWING)
def test_a_text_that_doubles_itself_is_stopped_before_it_fills_the_memory(grown: str) -> None:
    source = (
        "{% set ns = namespace(x='aa') %}{% for turn in range(99) %}{% set ns.x = "
        + grown
        + " %}{% endfor %}{{ ns.x }}"
    )
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="would make too much of a row"):
            fill(source, {})
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% set n = namespace(x='a') %}{% for t in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
        "{% set x %}{% for t in range(99999) %}" + "a" * 5000 + "{% endfor %}{% endset %}",
        "{{ [1]|batch(900000000, 1)|list }}",
        "{{ [1]|slice(900000000)|list }}",
        "{{ [1]|tojson(900000000) }}",
        "{{ (1).to_bytes(900000000, 'big') }}",
        "{{ '%*d' % (900000000, 1) }}",
        "{{ '{:{w}}'.format(1, w=900000000) }}",
        "{{ 'a'.ljust(width) }}",
        "{{ ('\\n' * 2000)|indent(1000, true, true) }}",
        "{{ q|regex_replace('(?=(.*))', '\\\\1' * 999) }}",
        "{{ 99999 ** 60 * 99999 ** 60 * 99999 ** 60 * 99999 ** 60 }}",
    ],
)
def test_what_would_take_for_ever_or_all_the_room_is_stopped(source: str) -> None:
    with pytest.raises(UsageError) as refused:
        fill(source, {"width": 900_000_000, "q": "a" * 2000})
    assert "too much" in str(refused.value)


def test_a_long_row_may_be_written_whole() -> None:
    book = "word " * 400_000
    assert fill("{{ text }}", {"text": book}) == book
    assert fill("{{ text|trim }}", {"text": book}) == book.strip()


@pytest.mark.parametrize(
    "source",
    [
        "{{ lipsum() }}",
        "{{ q|random }}",
        "{% include 'x' %}",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ q|attr('__class__') }}",
    ],
)
def test_what_templates_of_tasks_do_not_need_is_not_there(source: str) -> None:
    with pytest.raises(UsageError) as refused:
        fill(source, ROW)
    assert "\n" not in str(refused.value)


def test_an_error_does_not_carry_the_row() -> None:
    with pytest.raises(UsageError) as refused:
        fill("{{ q|int(base=q) }}{{ (q ~ q).missing.x }}", {"q": "long " * 1000})
    assert len(str(refused.value)) < 500


@given(
    st.text("ab\n 1", max_size=12),
    st.sampled_from(["a", "a*", "(a)(b)?", "", "^", "b|$", "[ab]+", "(?=(.))"]),
    st.sampled_from(["", "x", "[\\g<0>]", "\\\\"]),
    st.integers(0, 3),
)
def test_regex_replace_is_re_sub(text: str, pattern: str, by: str, count: int) -> None:
    assert regex_replace(text, pattern, by, count) == re.sub(pattern, by, text, count=count)
