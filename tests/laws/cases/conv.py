"""Rows of fewshot/methods/conv.py."""

from tests.laws.case import Case

# (size, channels in, channels out) of the convolutions of the tiny ResNet.
BLOCKS = ((3, 8, 16), (3, 16, 16), (3, 16, 24), (3, 24, 24), (3, 24, 24), (3, 24, 24))
CONVS = ((7, 3, 8), (1, 8, 16), (1, 16, 24), *BLOCKS)
TUCKER = sum(min(2, n) ** 2 * 4 + 2 * n * min(2, n) + 2 * (d + k) for n, d, k in CONVS)
ADAPTERS = sum(9 * d + d // 4 * k + k for _, d, k in BLOCKS)
VECTORS = sum(d if d == k else d * k for _, d, k in BLOCKS)

CASES = (
  Case('conv_lora(rank=2)', sum(2 * (n * n * d + k) for n, d, k in CONVS), on=('resnet',)),
  Case('flora(rank=2)', TUCKER, on=('resnet',)),
  Case('tsa()', sum(d * k for _, d, k in BLOCKS), on=('resnet',)),
  Case("tsa(form='channel')", VECTORS, on=('resnet',)),
  Case('conv_adapter()', ADAPTERS, merges=False, on=('resnet',)),
)
