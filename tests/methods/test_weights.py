"""What a method in weight space may change."""

import jax
import numpy as np

from fewshot import methods
from fewshot.methods.weights import floats

NORM = {'scale': np.ones(2, 'f'), 'bias': np.ones(2, 'f')}


def test_running_statistics_never_train():
  statistics = {'mean': np.ones(2, 'f'), 'var': np.ones(2, 'f')}
  params = {'norm_0': NORM | statistics, 'mean': np.ones(2, 'f')}
  assert sorted(floats(params)) == ['norm_0/bias', 'norm_0/scale']
  theta, _ = methods.full().init(jax.random.key(0), None, params, None)
  assert sorted(theta) == ['norm_0/bias', 'norm_0/scale']


def test_leaves_whose_names_only_hold_mean_or_var_train():
  params = {'mean_pool': NORM, 'variance': np.ones(2, 'f'), 'var_scale': np.ones(2, 'f')}
  assert len(floats(params)) == 4
