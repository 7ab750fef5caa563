"""Spellings: what they mean, how they print, and that no text breaks the parser."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshot import fits, methods
from fewshot.errors import FewshotError
from fewshot.methods import paths

WHERES = st.recursive(
  st.sampled_from(['.*', '.*/bias', 'head/.*', "it's", '\\d+']).map(methods.at),
  lambda inner: st.one_of(
    st.tuples(inner, inner).map(lambda p: p[0] | p[1]),
    st.tuples(inner, inner).map(lambda p: p[0] & p[1]),
    inner.map(lambda s: ~s),
  ),
  max_leaves=6,
)
SIZES = st.integers(1, 99)
PARTS = st.one_of(
  st.builds(methods.lora, WHERES, SIZES, st.floats(-1e9, 1e9).filter(bool)),
  st.builds(methods.tune, WHERES),
  st.builds(methods.adapter, width=SIZES),
  st.builds(methods.soft_prompt, SIZES),
  st.builds(methods.linear, classes=SIZES),
  st.builds(methods.nearest_mean, st.sampled_from(['cosine', 'euclidean'])),
  st.builds(methods.as_weights, st.builds(methods.ia3, outputs=WHERES)),
)
NAMES = ['bias', 'head/bias', 'a/bias', '12', "it's", 'x/kernel']


@given(st.lists(PARTS, max_size=4))
def test_a_spelling_round_trips(parts):
  text = methods.spell(methods.chain(*parts))
  assert methods.spell(methods.parse(text)) == text


@given(WHERES)
def test_a_selection_means_what_its_spelling_means(selection):
  again = methods.parse(f'tune({methods.spell(selection)})').made.args[0]
  assert again.of(NAMES) == selection.of(NAMES)


@pytest.mark.parametrize(
  'text, same',
  [
    ("tune('head/.*')", "tune(where='head/.*')"),
    ('lora(".*/query", 4)', "lora(where='.*/query', rank=4)"),
    (' lora( rank = 4 , ) ', 'lora(rank=4)'),
    ('chain(lora(), chain(ia3(), linear()))', 'chain(lora(), ia3(), linear())'),
    ('chain(chain(), lora())', 'lora()'),
    ("tune(~(~at('a') & at('b')))", "tune(where=~(~at('a') & at('b')))"),
    ("tune((~at('a') | at('b')) & at('c'))", "tune(where=(~at('a') | at('b')) & at('c'))"),
    ("lora(where='a\\n', alpha=-1e-3)", "lora(where='a\\n', alpha=-0.001)"),
  ],
)
def test_a_spelling_has_one_form(text, same):
  assert methods.spell(methods.parse(text)) == same


def test_numpy_numbers_are_spelled_as_numbers():
  assert methods.spell(fits.sgd(lr=np.float64(1e-3))) == 'sgd(lr=0.001)'
  assert methods.spell(fits.sgd(lr=np.float32(0.5))) == 'sgd(lr=0.5)'


@pytest.mark.parametrize(
  'text, match',
  [
    ('lorra()', "unknown method 'lorra'; did you mean 'lora'?"),
    ('lora', "'lora' is a bare name; write lora"),
    ('lora(rnk=2)', "lora has no argument 'rnk'; did you mean 'rank'?"),
    ('bitfit(rank=2)', "bitfit has no argument 'rank'; it takes none"),
    ("lora(rank='8')", "takes int, not '8'"),
    ('lora(rank=True)', 'takes int, not True'),
    ('lora(rank=2.0)', 'takes int, not 2.0'),
    ('lora(rank=0)', r'lora\(rank=0\) is too small; rank is at least 1'),
    ('adapter(width=0)', 'width is at least 1'),
    ('soft_prompt(length=0)', 'length is at least 1'),
    ('bitfit(1)', 'too many positional arguments'),
    ('lora(alpha=1e999)', r'lora\(alpha=inf\) is not finite'),
    ('lora(**{})', r'\*\* is not part of a spelling'),
    ('chain(*[lora()])', 'is not a method spelling'),
    ('chain(lora(), 3)', 'chain takes methods, not 3'),
    ('as_weights(adapter())', r'adapter\(\) has no weight form; it cannot be merged'),
    ("nearest_mean('dot')", 'there are cosine, euclidean'),
    ("tune(at('('))", 'is not a regular expression'),
    ("tune(at('a') | 5)", '| and & combine selections, not 5'),
    ("tune(at('a') & lora())", '| and & combine selections'),
    ("at('a')", 'spells no method; write for example'),
    ('8', 'spells no method'),
    ('', 'is not a method spelling'),
    ("__import__('os')", "unknown method '__import__'"),
    ('lora().init', 'is not a method spelling'),
    ('(lambda: 1)()', 'is not a method spelling'),
    ('x' * 100_001, 'at most 100000 characters'),
  ],
)
def test_a_wrong_spelling_is_one_clear_line(text, match):
  with pytest.raises(FewshotError, match=match) as e:
    methods.parse(text)
  assert '\n' not in str(e.value)


NASTY = [
  '\0', 'lora(\0)', 'lora(rank=' + '9' * 5000 + ')', 'lora(rank=' + '9' * 4000 + ')',
  '(' * 5000 + ')' * 5000, '-' * 9000 + '1', '~' * 2000 + "at('a')", 'chain(' * 150 + ')' * 150,
  "tune(" + '~' * 300 + "at('a'))", 'lora(rank={[]: 1})', 'lora(rank={1: 2})', 'lora(rank=b"8")',
  'lora(rank=1j)', 'lora(rank=...)', 'lora(rank=None)', "'a' | at('b')", '1 & 2', "~'a'",
  'lora() | lora()', 'lora(rank=1, rank=2)', 'lora(rank=2**99)', 'lora(\n', 'lora()\nlora()',
  'lora(); lora()', '\ud800', 'lora(where="\\ud800")', '\N{FULLWIDTH LATIN SMALL LETTER L}ora()',
  'a.b.c', 'a[0]', 'f"{lora()}"', 'lora(yield)', 'lora(await x)', 'lora(x := 1)', '\x0c', '#',
  "tune('" + '(' * 900 + ')' * 900 + "')", "tune('a{99999999999}')",
]  # fmt: skip


@pytest.mark.parametrize('text', NASTY, ids=range(len(NASTY)))
def test_nothing_but_a_fewshot_error_comes_of_a_nasty_text(text):
  tried(text)


TOKENS = [
  *methods.VOCABULARY, *'()=,|&~-*.:[]{}"8 ', "'a'", '1e9', 'None', 'True', 'rank', 'where', '\0',
  '\n',
]  # fmt: skip


@given(st.lists(st.sampled_from(TOKENS), max_size=25).map(''.join))
def test_nothing_but_a_fewshot_error_comes_of_words(text):
  tried(text)


@given(st.text(max_size=200))
def test_nothing_but_a_fewshot_error_comes_of_text(text):
  tried(text)


@given(st.one_of(st.none(), st.integers(), st.binary(), st.lists(st.text()), st.floats()))
def test_nothing_but_a_fewshot_error_comes_of_another_type(value):
  with pytest.raises(FewshotError, match='is spelled by a string'):
    methods.parse(value)


def tried(text: str) -> None:
  try:
    made = methods.parse(text)
  except FewshotError as e:
    assert str(e)
  else:
    assert methods.spell(methods.parse(methods.spell(made))) == methods.spell(made)


def test_remake_repeats_a_call_with_other_arguments():
  assert methods.spell(methods.remake(methods.lora('.*/key'), rank=3)) == (
    "lora(where='.*/key', rank=3)"
  )
  with pytest.raises(FewshotError, match="lora has no argument 'rnk'; did you mean 'rank'"):
    methods.remake(methods.lora(), rnk=3)
  with pytest.raises(FewshotError, match='chain takes no named arguments'):
    methods.remake(methods.chain(methods.lora(), methods.ia3()), methods=())


def test_what_no_constructor_made_has_no_spelling():
  with pytest.raises(FewshotError, match='a function has no spelling'):
    methods.spell(lambda: 0)
  with pytest.raises(FewshotError, match='has no spelling'):
    methods.spell(methods.Method(lambda *a: ({}, {})))
  with pytest.raises(FewshotError, match='has no spelling'):
    methods.spell(methods.tune(paths.Selection(lambda p: True)))


def test_numbers_of_numpy_are_those_of_python():
  """sparse tells a count from a fraction by the type."""
  made = methods.sparse(budget=np.int64(20))
  params = {'attn': {'query': {'kernel': np.ones((8, 8), np.float32)}}}
  theta, _ = made.init(jax.random.key(0), None, params, None)
  assert methods.spell(made) == 'sparse(budget=20)' and methods.count(theta) == 20
