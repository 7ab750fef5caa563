"""Soft prompts: what the model reads, what it returns, and what makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.methods import prompts
from fewshot.models import bert
from tests.models import decoders

KEY = jax.random.key(0)
LENGTH = 3


def prompted(tiny):
  method = methods.soft_prompt(length=LENGTH)
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  return method, theta, state


def test_it_starts_as_the_model_that_reads_these_tokens_first(tiny):
  """The prompt starts at rows of the table: real tokens in front give the same outputs."""
  method, theta, state = prompted(tiny)
  table, prompt = tiny.params['embed']['embedding'], np.asarray(theta['inputs']['prompt'])
  ids = np.array([np.flatnonzero((table == row).all(-1))[0] for row in prompt])
  size = len(tiny.batch['tokens'])
  longer = {
    'tokens': np.concatenate([np.broadcast_to(ids, (size, LENGTH)), tiny.batch['tokens']], 1),
    'mask': np.pad(tiny.batch['mask'], ((0, 0), (LENGTH, 0)), constant_values=True),
  }
  want = tiny.forward(tiny.params, longer)['hidden'][:, LENGTH:]
  got = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)
  real = tiny.batch['mask']
  np.testing.assert_allclose(np.asarray(got['hidden'])[real], np.asarray(want)[real], atol=1e-5)


def test_outputs_keep_the_length_of_the_tokens(tiny):
  method, theta, state = prompted(tiny)
  want = tiny.forward(tiny.params, tiny.batch)
  got = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)
  assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, want)
  np.testing.assert_array_equal(got['mask'], tiny.batch['mask'])


def test_padding_does_not_change_what_a_prompt_does(tiny, perturb):
  method, theta, state = prompted(tiny)
  adapted = methods.adapt(method, tiny.forward, perturb(theta), state)
  longer = {k: np.pad(tiny.batch[k], ((0, 0), (0, 4))) for k in ('tokens', 'mask')}
  want = adapted(tiny.params, tiny.batch)['features']
  np.testing.assert_allclose(adapted(tiny.params, longer)['features'], want, atol=1e-5)


def test_two_prompts_are_both_read(tiny, perturb):
  two = methods.chain(methods.soft_prompt(length=2), methods.soft_prompt(length=4))
  theta, state = two.init(KEY, tiny.forward, tiny.params, tiny.calib)
  logits = lambda t: np.asarray(  # noqa: E731
    methods.adapt(two, tiny.forward, t, state)(tiny.params, tiny.batch)['logits']
  )
  base = logits(theta)
  for i in (0, 1):
    moved = (*theta[:i], perturb(theta[i]), *theta[i + 1 :])
    assert np.abs(logits(moved) - base).max() > 1e-3


def test_a_prompt_longer_than_the_positions_is_refused(tiny):
  method = methods.soft_prompt(length=60)
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  with pytest.raises(FewshotError, match=r'67 tokens \(prompts counted\) .* 64 positions'):
    methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)


def test_a_model_without_an_embedding_table_is_refused(tiny):
  class Inputs(bert.nn.Module):
    @bert.nn.compact
    def __call__(self, x):
      return bert.nn.Dense(4, name='inputs')(x)

  forward = models.from_linen(Inputs())
  params = Inputs().init(KEY, np.ones((1, 2)))['params']
  calib = methods.Calib({'x': np.ones((1, 2), np.float32)})
  with pytest.raises(FewshotError, match='table of tokens, embed/embedding; there are inputs/bias'):
    methods.soft_prompt().init(KEY, forward, params, calib)


def test_a_prompt_is_in_the_cache_and_read_only_once(perturb):
  """Decoding goes on behind it: at its positions, with a mask wider than the new token."""
  model = decoders.tiny('gpt2')
  method = methods.soft_prompt(length=LENGTH)
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(model.batch))
  adapted = methods.adapt(method, model.forward, perturb(theta), state)
  out = adapted(model.params, model.batch | {'room': np.zeros(2)})
  held = out['cache']['encoder']
  assert out['hidden'].shape == (3, 6, 16) and held['mask'].shape == (3, LENGTH + 6 + 2)
  np.testing.assert_array_equal(held['mask'].sum(1), LENGTH + model.batch['mask'].sum(1))
  new = np.array([[4], [5], [6]])
  then = adapted(model.params, {'tokens': new, 'cache': out['cache']})
  assert then['hidden'].shape == (3, 1, 16)
  held = then['cache']['encoder']
  np.testing.assert_array_equal(held['positions'][:, -2], LENGTH + model.batch['mask'].sum(1))
  longer = {
    'tokens': np.array([[*model.batch['tokens'][0], 4]]),
    'mask': np.ones((1, 7), bool),
  }
  want = adapted(model.params, longer)['token_logits'][:, -1]
  np.testing.assert_allclose(then['token_logits'][:1, 0], want, atol=1e-5)


def started(spelling, tiny, batch=None):
  """What the method has at `inputs`."""
  calib = methods.Calib(batch or tiny.batch)
  return methods.parse(spelling).init(KEY, tiny.forward, tiny.params, calib)[0]['inputs']


def test_a_prompt_starts_at_the_tokens_of_a_text_or_of_the_examples(tiny):
  """They are repeated where the prompt is longer."""
  table, real = tiny.params['embed']['embedding'], tiny.batch['tokens'][tiny.batch['mask']]
  got = started('soft_prompt(length=5, tokens=(7, 3))', tiny)['prompt']
  np.testing.assert_array_equal(got, table[[7, 3, 7, 3, 7]])
  got = started("soft_prompt(length=40, init='examples')", tiny)['prompt']
  assert len(real) < 40
  np.testing.assert_array_equal(got, table[np.resize(real, 40)])
  got = started("soft_prompt(length=40, init='random')", tiny)['prompt']
  assert abs(got.mean()) < 0.1 and abs(got.std() - 1) < 0.1


def test_a_prompt_is_drawn_from_the_domain_of_the_examples(tiny):
  """4,000 draws have the mean and the variance of the mixture, worked out in numpy."""
  table, mask = tiny.params['embed']['embedding'], tiny.batch['mask']
  e = np.stack([table[t[m]].mean(0) for t, m in zip(tiny.batch['tokens'], mask, strict=True)])
  labels = tiny.batch['labels']
  got = np.asarray(started("soft_prompt(length=4000, init='domain')", tiny)['prompt'])
  spread = e.std(0)  # Of the mixture: within the classes and between them.
  np.testing.assert_allclose(got.mean(0), e.mean(0), atol=5 * spread.max() / 4000**0.5)
  np.testing.assert_allclose(got.std(0), spread, rtol=0.15)
  one = {k: v[labels == 0] for k, v in tiny.batch.items()}
  alone = np.asarray(started("soft_prompt(length=4000, init='domain')", tiny, one)['prompt'])
  np.testing.assert_allclose(alone.std(0), e[labels == 0].std(0), rtol=0.15)
  single = {k: v[:1] for k, v in tiny.batch.items() if k != 'labels'}
  same = np.asarray(started("soft_prompt(length=2, init='domain')", tiny, single)['prompt'])
  np.testing.assert_allclose(same, [e[0]] * 2, atol=1e-3)


def test_wrong_starts_are_refused(tiny):
  with pytest.raises(FewshotError, match=r'\(50,\)\): the table has the ids 0 to 49'):
    started('soft_prompt(tokens=(50,))', tiny)
  with pytest.raises(FewshotError, match='not at both'):
    methods.soft_prompt(init='random', tokens=(1,))
  with pytest.raises(FewshotError, match='there are vocabulary, random, examples'):
    methods.scaled_prompt(init='text')
  with pytest.raises(FewshotError, match='there are mlp, lstm'):
    methods.p_tuning(encoder='gru')
  with pytest.raises(FewshotError, match=r'layers=3\) is of the lstm'):
    methods.p_tuning(layers=3)
  with pytest.raises(FewshotError, match=r'dept\(rank=0\) is too small'):
    methods.dept(rank=0)


def same_as(tiny, method, theta, prompt):
  """Whether a method at theta is soft_prompt at the prompt."""
  plain = methods.soft_prompt(length=len(prompt))
  start, _ = plain.init(KEY, tiny.forward, tiny.params, tiny.calib)
  got = methods.adapt(method, tiny.forward, theta, {})(tiny.params, tiny.batch)
  want = start | {'inputs': {'prompt': jnp.asarray(prompt)}}
  want = methods.adapt(plain, tiny.forward, want, {})(tiny.params, tiny.batch)
  np.testing.assert_allclose(got['features'], want['features'], atol=1e-5)


def test_gains_scale_the_prompt(tiny, perturb):
  """They start at one, where the method is a soft prompt."""
  method = methods.scaled_prompt(length=LENGTH)
  theta = method.init(KEY, tiny.forward, tiny.params, tiny.calib)[0]
  same_as(tiny, method, theta, theta['inputs']['prompt'])
  theta = perturb(theta)
  t = theta['inputs']
  same_as(tiny, method, theta, t['prompt'] * t['scale'])


def test_an_mlp_makes_the_prompt(tiny):
  method = methods.p_tuning(length=LENGTH, width=4)
  theta = method.init(KEY, tiny.forward, tiny.params, tiny.calib)[0]
  t = jax.tree.map(np.asarray, theta['inputs'])
  x = t['embedding']
  for name in ('in', 'middle'):
    x = np.maximum(x @ t[name] + t[f'{name}_bias'], 0)
  same_as(tiny, method, theta, x @ t['out'] + t['out_bias'])


def test_an_lstm_reads_both_ways(tiny):
  """Gate by gate, in PyTorch's order."""
  t = started("p_tuning(length=5, encoder='lstm', width=4, layers=2)", tiny)
  t = jax.tree.map(np.asarray, t)
  sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731

  def one_way(name, x):
    h, c, out = np.zeros(4), np.zeros(4), []
    for row in x:
      z = row @ t[f'{name}_in'] + t[f'{name}_in_bias']
      i, f, g, o = np.split(z + h @ t[f'{name}_hidden'] + t[f'{name}_hidden_bias'], 4)
      c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
      h = sigmoid(o) * np.tanh(c)
      out.append(h)
    return np.array(out)

  x = t['embedding']
  for i in (0, 1):
    ways = one_way(f'forward_{i}', x), one_way(f'backward_{i}', x[::-1])[::-1]
    x = np.concatenate(ways, 1)
  np.testing.assert_allclose(prompts._bilstm(t, t['embedding'], 2), x, atol=1e-5)


@pytest.mark.parametrize('spelling', ['dept(3, 2, max_length=5)', 'ept(3, 2, 2, max_length=5)'])
def test_a_low_rank_update_moves_the_tokens_of_a_text_by_their_place(tiny, perturb, spelling):
  """As if the table had other rows for them; tokens beyond max_length stay as they are."""
  method = methods.parse(spelling)
  theta = jax.tree.map(np.asarray, method.init(KEY, tiny.forward, tiny.params, tiny.calib)[0])
  np.testing.assert_array_equal(theta['inputs']['b'], 0)
  same_as(tiny, method, theta, theta['inputs']['prompt'])
  fixed = {k: v for k, v in theta['inputs'].items() if k in ('u', 'v', 'gate')}
  moved = perturb(theta['inputs']) | fixed
  tokens = np.arange(1, 8)[None]  # Each once, so that a place is a token.
  batch = {'tokens': tokens, 'mask': np.ones((1, 7), bool)}
  change = np.pad(moved['a'] @ moved['b'], ((1, 44), (0, 0)))
  params = {**tiny.params, 'embed': {'embedding': tiny.params['embed']['embedding'] + change}}
  got = methods.adapt(method, tiny.forward, theta | {'inputs': moved}, {})(tiny.params, batch)
  still = theta | {'inputs': moved | {'a': np.zeros_like(moved['a'])}}
  if spelling.startswith('ept'):  # Its prompt, too, reads A B.
    f, ab = moved['prompt'], moved['a'] @ moved['b']
    e = np.exp(f @ ab.T / np.sqrt(32))
    still['inputs']['prompt'] = f + e / e.sum(1, keepdims=True) @ ab
  want = methods.adapt(method, tiny.forward, still, {})(params, batch)
  np.testing.assert_allclose(got['features'], want['features'], atol=1e-5)


def test_subspaces_are_mixed_by_a_gate(tiny, perturb):
  """P + sum_i g_i U_i V_i P, where A B is zero."""
  method = methods.ept(length=LENGTH, rank=2, spaces=2, max_length=5)
  theta = perturb(method.init(KEY, tiny.forward, tiny.params, tiny.calib)[0])
  t = theta['inputs']
  t['b'] = np.zeros_like(t['b'])
  p, e = t['prompt'], np.exp(t['prompt'].mean(0) @ t['gate'])
  g = e / e.sum()
  want = p + sum(g[i] * p @ t['u'][i] @ t['v'][i] for i in (0, 1))
  same_as(tiny, method, theta, want)


def test_decoding_goes_on_with_the_places_of_the_text(perturb):
  model, method = decoders.tiny('gpt2'), methods.dept(length=LENGTH, rank=2, max_length=9)
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(model.batch))
  adapted = methods.adapt(method, model.forward, perturb(theta), state)
  cache = adapted(model.params, model.batch | {'room': np.zeros(2)})['cache']
  then = adapted(model.params, {'tokens': np.array([[4], [5], [6]]), 'cache': cache})
  longer = {'tokens': np.array([[*model.batch['tokens'][0], 4]]), 'mask': np.ones((1, 7), bool)}
  want = adapted(model.params, longer)['token_logits'][:, -1]
  np.testing.assert_allclose(then['token_logits'][:1, 0], want, atol=1e-5)


def test_prompts_and_prefixes_share_positions():
  """In both orders the prompt stands behind the prefix, and the text behind both."""
  model = decoders.tiny('gpt2')
  parts = methods.soft_prompt(length=2), methods.prefix(length=3)
  calib = methods.Calib(model.batch)
  theta = [m.init(KEY, model.forward, model.params, calib)[0] for m in parts]
  outputs = [
    methods.adapt(methods.chain(*m), model.forward, t, ({}, {}))(model.params, model.batch)
    for m, t in ((parts, theta), (parts[::-1], theta[::-1]))
  ]
  np.testing.assert_allclose(outputs[0]['hidden'], outputs[1]['hidden'], atol=1e-5)
