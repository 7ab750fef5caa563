"""Examples as a context, against the model that reads them and the text in one pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import fits, generation, methods, objectives
from fewshot.errors import FewshotError
from fewshot.fits.base import Loss
from fewshot.methods import examples, prefixes, rooms
from fewshot.methods.examples import Shown
from tests.laws import laws
from tests.models import decoders

KEY, BOS, SEP = jax.random.key(0), 1, (40, 41)
# Six examples of two classes: a text, behind whose slot a token is left out, and an answer.
TEXTS = ([2, 3, 4, 9], [5, 6, 9], [7, 9], [8, 10, 11, 12, 9], [13, 14, 9], [15, 9])
ANSWERS = ([20], [21, 22], [20], [21, 22], [20], [21, 22])
TEXT = [30, 31, 32]  # Is read after them.


def rows(texts, width=0):
  """tokens and mask [B, T]."""
  width = max(width, *map(len, texts))
  tokens = np.array([[*t, *[0] * (width - len(t))] for t in texts], np.int32)
  return {'tokens': tokens, 'mask': np.arange(width) < np.array([[len(t)] for t in texts])}


def train(begin=()):
  """The batch that a run starts from."""
  batch = rows([[*begin, *t] for t in TEXTS])
  slots = np.array([[len(begin) + len(t) - 2] for t in TEXTS])
  answer = np.array([[*a, -1][:2] for a in ANSWERS], np.int32)
  labels = np.array([len(a) - 1 for a in ANSWERS], np.int32)
  return batch | {'slots': slots, 'answer': answer, 'labels': labels}


SAID = [t[:-1] + a + [*SEP] for t, a in zip(TEXTS, ANSWERS, strict=True)]  # Of each example.


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """These programs compile for seconds and run for milliseconds."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def read(key, shots, length=40, begin=(), causal=True):
  """The real tokens of a context."""
  shown = Shown('demonstrations', shots, length, SEP, BOS if begin else None)
  text, state = jax.jit(lambda k: examples.laid_out(k, shown, train(begin), causal))(key)
  assert text['tokens'].shape == (1, length)
  seen = np.asarray(state['seen'])
  assert (np.diff(seen.astype(int)) <= 0).all()  # Without holes.
  return np.asarray(text['tokens'])[0, seen].tolist(), np.asarray(state['owner'])[seen]


def split(tokens):
  """Which examples a context is made of, in order."""
  ends = [i + 1 for i, t in enumerate(tokens) if t == SEP[-1]]
  assert not tokens or ends[-1] == len(tokens)
  return [SAID.index(tokens[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def wide(name):
  """A tiny decoder with room for a context."""
  model = decoders.tiny(name)
  config = dataclasses.replace(model.config, positions=80)
  return model._replace(config=config, params=decoders.params(model.family, config))


def starts(method, model, batch, key=KEY):
  init = jax.jit(lambda k, p, b: method.init(k, model.forward, p, methods.Calib(b, 2)))
  theta, state = init(key, model.params, batch)
  return theta, state, methods.adapt(method, model.forward, theta, state)


def joint(model, tokens):
  """The outputs of a plain pass over one row."""
  return jax.jit(lambda p, b: model.forward(p, b))(model.params, rows([tokens]))


def test_whole_examples_say_their_answers_without_holes():
  order = split(read(KEY, 0, 60)[0])
  assert sorted(order) == [0, 1, 2, 3, 4, 5]
  some = [split(read(jax.random.key(i), 0, 60)[0]) for i in range(4)]
  assert len({tuple(s) for s in some}) > 1  # A key is an order.


@pytest.mark.parametrize('shots', [2, 4])
def test_classes_are_balanced(shots):
  """Also by the keys that would draw one class alone, and after some have been left out."""
  chosen = set()
  for i in range(20):
    order = split(read(jax.random.key(i), shots)[0])
    assert len(set(order)) == shots and sum(e % 2 for e in order) == shots // 2
    chosen |= set(order)
  assert chosen == set(range(6))


def test_examples_that_do_not_fit_are_left_out_as_a_whole():
  """They hold 6, 6, 4, 8, 5 and 5 tokens; the longest has more than 7."""
  for i in range(8):
    tokens, owner = read(jax.random.key(i), 0, 7)
    (only,) = split(tokens)
    assert only != 3 and len(set(owner.tolist())) == 1
  assert read(KEY, 0, 3)[0] == []  # Then there is no context.
  assert all(len(split(read(jax.random.key(i), 0, 12)[0])) == 2 for i in range(8))


def test_the_first_text_alone_begins():
  tokens, owner = read(KEY, 3, begin=(BOS,))
  assert tokens[0] == BOS and owner[0] == 0 and len(split(tokens[1:])) == 3
  assert split(tokens[1:]) == split(read(KEY, 3)[0])
  assert split(read(KEY, 0, 8, begin=(BOS,))[0][1:]) != []  # One of 7 tokens or less, behind it.


def test_in_a_masked_model_answers_stand_in_the_slots():
  shown = Shown('context_tuning', 1, 8, (), None)
  batch = rows([[3, 9, 9, 5]]) | {'slots': np.array([[1, 2]]), 'answer': np.array([[20, -1]])}
  text, _ = examples.laid_out(KEY, shown, batch, causal=False)
  assert text['tokens'][0].tolist() == [3, 20, 9, 5, 0, 0, 0, 0]


@pytest.mark.parametrize('name', ['gpt2', 'llama', 'gemma'])
@pytest.mark.parametrize('begin', [(), (BOS,)])
def test_demonstrations_are_read_as_in_the_joint_text(name, begin):
  """Learned and rotary positions, windows, rows of several lengths, with and without slots."""
  model, bos = wide(name), BOS if begin else None
  method = methods.demonstrations(shots=4, length=40, separator=SEP, bos=bos)
  adapted = starts(method, model, train(begin))[2]
  key = jax.random.fold_in(KEY, methods.paths.stable_hash('demonstrations'))
  before, _ = read(key, 4, begin=begin)
  batch = rows([[*begin, *TEXT], [*begin, 33]], 6)
  got = jax.jit(adapted)(model.params, batch)
  assert 'cache' not in got
  last = np.array([[len(begin) + 2], [len(begin)]])
  asked = jax.jit(adapted)(model.params, batch | {'slots': last})['token_logits']
  for i, text in enumerate((TEXT, [33])):
    want, place = joint(model, [*before, *text]), slice(len(begin), len(begin) + len(text))
    for what in ('token_logits', 'hidden'):
      np.testing.assert_allclose(got[what][i, place], want[what][0, len(before) :], atol=2e-5)
    np.testing.assert_allclose(got['features'][i], want['features'][0], atol=2e-5)
    np.testing.assert_allclose(asked[i, 0], want['token_logits'][0, -1], atol=2e-5)


def test_a_verbalizer_reads_what_follows_the_examples():
  model = wide('llama')
  method = methods.parse('chain(demonstrations(shots=4, length=40), verbalizer(((7,), (9,))))')
  adapted = starts(method, model, train())[2]
  alone = starts(methods.demonstrations(shots=4, length=40), model, train())[2]
  batch = rows([TEXT]) | {'slots': np.array([[2]])}
  want = alone(model.params, batch)['token_logits'][0, 0, np.array([7, 9])]
  np.testing.assert_allclose(adapted(model.params, batch)['logits'], want[None], atol=1e-6)
  zero = model.forward(model.params, batch)['token_logits'][0, 0, np.array([7, 9])]
  assert np.abs(want - zero).max() > 1e-3


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_texts_are_generated_after_the_examples(name):
  model = wide(name)
  adapted = starts(methods.demonstrations(4, 40, SEP), model, train())[2]
  key = jax.random.fold_in(KEY, methods.paths.stable_hash('demonstrations'))
  before, _ = read(key, 4)
  out = generation._prefill(adapted, model.params, rows([TEXT]), 'tokens', 2)
  then = adapted(model.params, {'tokens': np.array([[4]]), 'cache': out[1]})
  np.testing.assert_allclose(
    then['token_logits'][0, 0],
    joint(model, [*before, *TEXT, 4])['token_logits'][0, -1],
    atol=2e-5,
  )


def test_runs_may_differ_in_their_examples():
  """vmap over keys and train sets is the loop over them."""
  model, method = wide('llama'), methods.demonstrations(2, 30)
  sets = [train(), train() | {'tokens': train()['tokens'] + 1}]
  keys = jax.random.split(KEY, 2)

  def run(key, batch):
    return starts(method, model, batch, key)[2](model.params, rows([TEXT]))['features']

  both = jax.jit(jax.vmap(run))(keys, jax.tree.map(lambda *x: np.stack(x), *sets))
  each = [run(k, b) for k, b in zip(keys, sets, strict=True)]
  assert np.abs(each[0] - each[1]).max() > 1e-3
  np.testing.assert_allclose(both, np.stack(each), atol=1e-5)


@pytest.mark.parametrize('name, begin', [('gpt2', ()), ('llama', (BOS,))])
def test_context_tuning_starts_as_in_context_learning(name, begin):
  """By the same key the same examples; without windows the same function."""
  model, bos = wide(name), BOS if begin else None
  if name == 'llama':
    model = model._replace(config=dataclasses.replace(model.config, window=None))
  for shots, length in ((0, 40), (2, 30)):
    args = (shots, length, SEP, bos)
    tuned = starts(methods.context_tuning(*args), model, train(begin))[2]
    shown = starts(methods.demonstrations(*args), model, train(begin))[2]
    batch = rows([[*begin, *TEXT], [*begin, 33]], 6)
    got, want = (jax.jit(f)(model.params, batch) for f in (tuned, shown))
    real = batch['mask'].copy()
    real[:, : len(begin)] = False
    np.testing.assert_allclose(got['hidden'][real], want['hidden'][real], atol=2e-5)


def at_rows(length=16):
  """A decoder, and the method that starts at its rows of 6, 3 and 1 tokens."""
  model = decoders.tiny('gpt2')
  return model, starts(methods.context_tuning(length=length), model, model.batch)


def test_in_training_a_row_does_not_see_its_own_example():
  """Changing the keys and values of an example moves all rows but its own, however padded."""
  model, (theta, state, _) = at_rows()
  method = methods.context_tuning(length=16, dropout=0.0)
  owner = state['*']['owner']
  second = state['*']['seen'] & (owner == examples.fingerprint(model.batch)[1])
  second = np.asarray(second)[:, None, None]
  assert second.sum() == 3
  moved = jax.tree.map(lambda x: np.where(second, x + 1, x), theta)
  longer = {n: np.pad(x, ((0, 0), (0, 2))) for n, x in model.batch.items()}
  outputs = [
    methods.adapt(method, model.forward, t, state)(model.params, longer, KEY)['features']
    for t in (theta, moved)
  ]
  change = np.abs(outputs[1] - outputs[0]).max(-1)
  assert change[1] == 0 and (change[[0, 2]] > 1e-3).all()


def test_dropout_hides_tokens_of_the_context_in_training_only():
  model, (theta, state, adapted) = at_rows()
  free = {'tokens': np.array([[7, 8, 9]]), 'mask': np.ones((1, 3), bool)}  # None of the examples.
  tuned = methods.context_tuning(length=16, dropout=0.999)
  most = methods.adapt(tuned, model.forward, theta, state)
  features = lambda f, *key: np.asarray(f(model.params, free, *key)['features'])  # noqa: E731
  np.testing.assert_array_equal(features(most), features(adapted))
  hidden = prefixes.prefixed(model.forward, theta, np.zeros((1, 16), bool), jnp.int32(10))
  np.testing.assert_allclose(features(most, KEY), features(hidden), atol=1e-5)


@pytest.mark.parametrize('beside', ['lora(rank=2)', 'prefix(length=2)'])
def test_what_trains_beside_demonstrations_gets_a_gradient(beside):
  """In either order; the examples stay what they were read as."""
  model, batch = wide('llama'), train()
  shown, scored = 'demonstrations(shots=2, length=20)', 'verbalizer(((7,), (9,)))'

  def gradient(params, method):
    theta, state = method.init(KEY, model.forward, params, methods.Calib(batch, 2))
    loss = Loss(model.forward, method, params, objectives.classification())
    return jax.grad(lambda t: loss(t, state, batch, KEY)[0])(theta)

  for order in ((shown, beside), (beside, shown)):
    method = methods.parse(f'chain({", ".join(order)}, {scored})')
    moved = jax.jit(gradient, static_argnums=1)(model.params, method)
    assert max(np.abs(g).max() for g in jax.tree.leaves(moved)) > 1e-5


@pytest.mark.parametrize(
  ('shots', 'length', 'begin', 'bounds'),
  [(3, 10, (), (1, 2, 20)), (3, 11, (BOS,), (1, 2, 21)), (1, 7, (), (0, 1, 8)),
   (2, 7, (), (1, 1, 14)), (500, 3, (), (0, 0, 34))],
)  # fmt: skip
def test_how_many_examples_fit(shots, length, begin, bounds):
  """They hold 4, 5, 5, 6, 6 and 8 tokens; whichever are drawn, as many as said are shown."""
  model, bos = wide('llama'), BOS if begin else None
  method = methods.chain(methods.demonstrations(shots, length, SEP, bos), methods.linear())
  rows = {k: np.asarray(v)[None] for k, v in train(begin).items()}
  (found,) = rooms.rooms(method, model.forward, model.params, rows)
  ((least, most),) = found.fit
  assert (least, most, found.needed) == bounds
  shown = {len(split(read(jax.random.key(i), shots, length, begin)[0][len(begin):]))
           for i in range(4)}  # fmt: skip
  assert shown <= set(range(least, most + 1))


def test_each_split_has_its_own_room():
  """A split of the shortest example alone holds more of them in the same length."""
  model, whole = wide('llama'), {k: np.asarray(v) for k, v in train().items()}
  short = {k: np.repeat(v[:1], len(v), 0) for k, v in whole.items()}
  rows = {k: np.stack([v, short[k]]) for k, v in whole.items()}
  method = methods.demonstrations(6, 24, SEP)
  fit = lambda train: rooms.rooms(method, model.forward, model.params, train)[0]  # noqa: E731
  both, alone = fit(rows), [fit({k: v[s : s + 1] for k, v in rows.items()}) for s in range(2)]
  assert both.fit == [a.fit[0] for a in alone] and both.fit[0] != both.fit[1]
  assert both.needed == max(a.needed for a in alone)


def test_what_is_not_shown_is_said():
  model = wide('llama')
  rows = {k: np.stack([v, v]) for k, v in train().items()}
  said = lambda m: [r.said for r in rooms.rooms(m, model.forward, model.params, rows)]  # noqa: E731
  assert said(methods.lora()) == []
  assert said(methods.demonstrations(2, 14, SEP)) == ['']
  assert said(methods.context_tuning(3, 10, SEP))[0].startswith('1 to 2 of 3 examples fit')
  assert said(methods.demonstrations(9, 40, SEP))[0].startswith('6 examples are all')


def test_misuse_is_refused():
  image, both_ways, t5 = (laws.fixture(n) for n in ('vit-tiny', 'bert-mlm-tiny', 't5-tiny'))
  for method in (methods.context_tuning(), methods.demonstrations()):
    with pytest.raises(FewshotError, match='rows of tokens and mask, and the batch has image'):
      method.init(KEY, image.model.forward, image.model.params, image.calib)
  for on in (both_ways, t5):
    with pytest.raises(FewshotError, match='reads both ways or keeps no cache'):
      methods.demonstrations().init(KEY, on.model.forward, on.model.params, on.calib)
  prompted = methods.chain(methods.soft_prompt(length=2), methods.demonstrations(2, 20))
  with pytest.raises(FewshotError, match='a soft prompt before demonstrations could not train'):
    starts(prompted, wide('llama'), train())
  behind = methods.chain(methods.demonstrations(2, 20), methods.dept(length=2, rank=2))
  with pytest.raises(FewshotError, match='there is no token 999; the model has'):
    starts(methods.demonstrations(2, 20, separator=(999,)), wide('llama'), train())
  with pytest.raises(FewshotError, match='dept is not read behind demonstrations'):
    starts(behind, wide('llama'), train())
  with pytest.raises(FewshotError, match=r'demonstrations\(shots=-1\): 1 or more, or 0 for all'):
    methods.demonstrations(shots=-1)
  with pytest.raises(FewshotError, match=r'demonstrations\(length=0\) is too small'):
    methods.demonstrations(length=0)
  with pytest.raises(FewshotError, match=r"are token ids, not \['x'\]"):
    methods.context_tuning(separator=('x',))
  with pytest.raises(FewshotError, match=r'dropout=1.0\) is no probability'):
    methods.context_tuning(dropout=1.0)


def test_nothing_of_it_trains():
  method, model = methods.demonstrations(2, 20), wide('gpt2')
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(train(), 2))
  assert theta == {} and not method.mergeable
  loss = Loss(model.forward, method, model.params, objectives.classification())
  assert fits.untrained()(loss, theta, state, None, KEY)[1] is state
