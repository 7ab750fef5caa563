"""Rows of fewshot/methods/masks.py."""

from tests.laws.case import DEPTH, EVERYWHERE, HEAD, POSITIONS, VOCAB, WIDTH, Case, D
from tests.laws.cases.moving import ALL

ATTENTION = 4 * (D * D + D)
BLOCK = ATTENTION + 2 * 2 * D + 2 * D * WIDTH + WIDTH + D
INPUTS = (VOCAB + POSITIONS + 2) * D + 2 * D
# Two of the four maps of attention, one of the two of the MLP (`bias` long), one of the two norms.
half = lambda bias: ATTENTION // 2 + D * WIDTH + bias + 2 * D  # noqa: E731

CASES = (
  Case('attention_only()', DEPTH * ATTENTION),
  Case('embeddings()', INPUTS),
  Case('layers(first=1, last=1)', BLOCK, on=EVERYWHERE),
  Case("layers(where='.*/mlp/.*')", DEPTH * (2 * D * WIDTH + WIDTH + D)),
  Case('last_layers()', BLOCK, on=EVERYWHERE),
  Case("soft_mask(snip(), keep='smallest', scale='tanh')", ALL, on=EVERYWHERE),
  Case('tokens((3, 7, 11))', 3 * D, on=('bert', 'gpt2')),
  Case('reinitialised()', 0, starts=False, on=EVERYWHERE, why='the last block starts anew'),
  Case('random_half()', INPUTS + half(WIDTH) + half(D) + HEAD, on=EVERYWHERE),
)
