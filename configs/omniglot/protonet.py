"""ProtoNet on Omniglot (Snell et al. 2017, arXiv:1703.05175): 60-way training, shots as tested."""

from fewshot import config as configs


def get_config():
  """Training on all 1,200 characters of the Vinyals split, with rotations; Conv4-64."""
  config = configs.episodes()
  changes = {
    'name': 'omniglot-protonet',
    'learner': 'protonet()',
    'train.pool': "omniglot(part='trainval')",
    'train.way': 60,
    'train.query': 5,
    'test.pool': "omniglot(part='test')",
    'test.query': 5,
    'test.episodes': 1000,
  }
  return configs.with_changes(config, changes)


def sweep():
  """1 and 5 shots, 5 and 20 ways; ways share a training."""
  for shot, steps in ((1, 5000), (5, 2500)):
    for way in (5, 20):
      yield {'train.shot': shot, 'train.steps': steps, 'test.shot': shot, 'test.way': way}
