"""Prompts for a causal language model on LM-BFF's given 16-shot splits: in context, and trained.

    fewshot run configs/lm_bff/smollm2.py

SmolLM2-135M-Instruct reads the templates of Zhao et al. 2021 (arXiv:2102.09690) and Lu et al. 2022
(arXiv:2104.08786).  Rates and steps are fixed beforehand, at values that the methods' papers use;
what trains takes 30 steps of 8 texts, so that a row takes minutes on two cores.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from fewshot import config as configs

SEEDS = (13, 21, 42, 87, 100)
PROMPTS = {
  'sst-2': "cloze('Review: {text}\\nSentiment: {mask}', 'Negative, Positive')",
  'subj': "cloze('Input: {text}\\nType: {mask}', 'subjective, objective')",
}
PARAGRAPH = 1116  # Two line ends, as one token of SmolLM2.


def get_config() -> ConfigDict:
  """What all rows share."""
  changes = {'name': 'lm-bff-smollm2', 'model': 'smollm2-135m', 'splits': SEEDS, 'max_length': 96}
  return configs.with_changes(configs.default(), changes)


def sweep() -> Iterator[dict[str, object]]:
  """Each way on each task; of zero-shot one run, which no split changes."""
  for task, prompt in PROMPTS.items():
    row = {'task': f'lmbff/{task}', 'prompt': prompt, 'fit': 'untrained()'}
    yield row | {'method': 'chain()', 'splits': SEEDS[:1]}
    in_context = f'demonstrations(shots=8, length=512, separator=({PARAGRAPH},))'
    yield row | {'method': in_context, 'calibration': 'contextual'}
    for method, lr in (
      ('lora(rank=8)', 1e-3),
      ('ia3()', 3e-3),
      ('soft_prompt(length=10)', 3e-2),
      (f'context_tuning(shots=8, length=512, separator=({PARAGRAPH},))', 1e-3),
    ):
      yield row | {'method': method, 'fit': f'sgd(steps=30, lr={lr}, batch=8)'}
