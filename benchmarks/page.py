"""docs/benchmarks.md from the committed results, so that the page never disagrees with them.

python benchmarks/page.py
"""

import json
from typing import Any

from fewshot.bench import FOLDER

PAGE = FOLDER.parent / 'docs' / 'benchmarks.md'
HEAD = """# Benchmarks

`fewshot bench NAME` measures one file of `benchmarks/`: ours and the peer's commands turn about,
the medians of both, their ratio (below 1: ours takes less), the bar that was set beforehand, and
what the hardware allows where that can be said. This page is made from `benchmarks/results/` by
`python benchmarks/page.py`. Machines are noisy: compare ratios, not seconds. On GPUs nothing has
been measured yet.

![ratios against their bars](figures/ratios.svg)
![time and memory as things grow](figures/scale.svg)
"""


def main() -> None:
  """Writes the page."""
  PAGE.write_text(page(), encoding='utf-8')


def page() -> str:
  """The page's text."""
  parts = [HEAD]
  for path in sorted((FOLDER / 'results').glob('*.json')):
    parts.append(section(path.stem, json.loads(path.read_text(encoding='utf-8'))))
  return '\n'.join(parts)


def section(name: str, result: dict[str, Any]) -> str:
  """The table of one file of results, and its notes."""
  versions = ', '.join(f'{k} {v}' for k, v in result.get('versions', {}).items())
  lines = [
    f'## {name}', '', f'{result["machine"]}; {versions}.', '',
    '| case | ours | peer | ratio | bar | limit | unit | n |',
    '| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |',
  ]  # fmt: skip
  for r in result['rows']:
    cells = [_number(r.get(k)) for k in ('ours', 'peer', 'ratio', 'bar', 'limit')]
    what = f'{r["name"]} ({r["error"]})' if r.get('error') else r['name']
    lines.append(f'| {what} | {" | ".join(cells)} | {r["unit"]} | {r["n"]} |')
  lines += [''] + [f'{note}\n' for note in result.get('notes', [])]
  return '\n'.join(lines)


def _number(x: Any) -> str:
  return '-' if x is None else f'{x:.3g}' if abs(x) < 100 else f'{x:,.0f}'


if __name__ == '__main__':
  main()
