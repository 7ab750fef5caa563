"""The frozen-prefix cache: LoRA in the last two of six layers, with it and without.

The runs of benchmarks/sweep.py: 15 of 60 steps of 32 SST-2 sentences, scored on 500.  The peer is
the same program with `engine.prefix` off.

    fewshot bench prefix
"""

from pathlib import Path

from fewshot.bench import Case

LAST_TWO = "lora(rank=8, where='encoder/block_[45]/attn/(query|value)')"


def cases() -> list[Case]:
  """A step of all runs; and the whole sweep, compiling and finding the shortcuts counted."""
  script = str(Path(__file__).parent / 'sweep.py')
  ours, peer = [script, '--method', LAST_TWO], [script, '--method', LAST_TWO, '--prefix', 'off']
  return [
    Case('a step of 15 runs', ours, peer, 'step_ms', 'ms', bars=(0.55, 0.55)),
    Case('the whole sweep', ours, peer, 'sweep_s', 's', bars=(0.50, 0.50)),
    Case('the whole sweep, compiled', ours, peer, 'total_s', 's', bars=(0.50, 0.50)),
  ]
