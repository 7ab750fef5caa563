"""Templates: texts with fields and mask slots, such as '{text} It was {mask}.', as tokens.

The fields of a long example are cut, the longest first, so that what the template says stays whole
and every slot is there.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from fewshot.errors import FewshotError, nearest
from fewshot.tasks import buckets

MASKS = ('<mask>', '[MASK]')  # In this order: MPNet's vocabulary holds BERT's token as a word.
MASK = 'mask'  # The field that is a slot.
Fields = Mapping[str, str]
Reads = Literal['masks', 'left', 'decoder']


class Template(NamedTuple):
  """A text with fields in braces; `{mask}` is a slot, where a model predicts a word.

  For a causal model the slots stand at the end: what it says after the last token of the text.
  """

  text: str
  pieces: tuple[str, ...]  # Literal text and names of fields, by turns.

  @property
  def fields(self) -> tuple[str, ...]:
    """The fields that are filled from an example, in the order of the text."""
    return tuple(f for f in self.pieces[1::2] if f != MASK)

  @property
  def slots(self) -> int:
    """How many mask tokens it has."""
    return self.pieces[1::2].count(MASK)

  @property
  def before_slot(self) -> str:
    """A text that ends as the template does before its last slot; a word stands behind it."""
    literal = self.pieces[-3] if self.slots else ''
    return 'a' + (literal or ' ')  # No word is glued to an example's last one.

  def fill(self, example: Fields, mask: str) -> str:
    """The text with every field filled; no field is looked into for braces."""
    named = {**example, MASK: mask}
    return ''.join(named[p] if i % 2 else p for i, p in enumerate(self.pieces))


def parse(text: str, fields: Sequence[str]) -> Template:
  """The template that `text` spells; `{{` and `}}` are braces.

  Raises `FewshotError` for a brace without its partner and for a field that examples lack.

  >>> parse('{text} It was {mask}.', ['text']).pieces
  ('', 'text', ' It was ', 'mask', '.')
  """
  parts = re.split(r'({{|}}|{[^{}]*}|[{}])', text)
  pieces, literal = [], ''
  for part in parts:
    if part in ('{{', '}}'):
      literal += part[0]
    elif part in ('{', '}'):
      raise FewshotError(f'template {text!r} has a single {part}; write {part * 2} for a brace')
    elif part.startswith('{') and part.endswith('}'):
      pieces += [literal, part[1:-1]]
      literal = ''
    else:
      literal += part
  template = Template(text, (*pieces, literal))
  odd = [f for f in template.fields if f not in fields]
  if odd:
    known = nearest(odd[0], (*fields, MASK))
    raise FewshotError(f'template {text!r} has a field {{{odd[0]}}} that examples lack; {known}')
  if not template.fields:
    raise FewshotError(f'template {text!r} shows no field of an example; write {{{fields[0]}}} too')
  return template


class Filled(NamedTuple):
  """Texts as arrays, by the names that batches have."""

  rows: dict[str, np.ndarray]  # tokens [N, L], mask [N, L], slots [N, M] where there are any.
  lengths: np.ndarray  # [N]
  cut: np.ndarray  # [N], whether a text was longer.


def encode(
  tokenizer: Any, template: Template, examples: Sequence[Fields], max_length: int, reads: Reads,
  behind: Sequence[str] = (),
) -> Filled:  # fmt: skip
  """Every example in the template as tokens of at most `max_length`, with the places of its slots.

  `reads` says what predicts a word: the mask tokens ('masks'), the last token of the text, after
  which the model puts the next ('left'), or a decoder behind the text ('decoder'); for the latter
  two the one slot ends the template.  `behind` are texts that follow each example, uncut.

  Raises:
    FewshotError: a slot that is not the end where it has to be, no mask token, no room for fields.
  """
  masked = reads == 'masks' and template.slots > 0
  token = tokenizer.id_to_token(mask_id(tokenizer)) if masked else ''
  if reads != 'masks':
    template = _without_slot(template)
  behind = behind or [''] * len(examples)
  texts, cut = fitted(tokenizer, template, examples, max_length, token, behind)
  # An empty text shows one position.
  ids = [e.ids or [0] for e in tokenizer.encode_batch(texts)]
  lengths = np.array([len(i) for i in ids])
  width = min(buckets.round_up(int(lengths.max())), max_length)
  tokens = padded(ids, width)
  rows = {'tokens': tokens, 'mask': np.arange(width) < lengths[:, None]}
  if reads == 'left':
    rows['slots'] = (lengths - 1)[:, None].astype(np.int32)
  elif masked:
    rows['slots'] = _slots(tokens, tokenizer.token_to_id(token), template, texts, token)
  return Filled(rows, lengths, cut)


def padded(rows: Sequence[Sequence[int]], width: int, fill: int = 0) -> np.ndarray:
  """[N, width] int32, `fill` behind each row."""
  out = np.full((len(rows), width), fill, np.int32)
  for to, row in zip(out, rows, strict=True):
    to[: len(row)] = row
  return out


def fields_of(text: str | tuple[str, ...]) -> tuple[str, ...]:
  """The fields of a text; that of one field is a plain string."""
  return text if isinstance(text, tuple) else (text,)


def check_texts(texts: Sequence[str]) -> None:
  """Refuses what is no text, and text that is no Unicode: the tokenizer takes neither."""
  for i, text in enumerate(texts):
    if not isinstance(text, str):
      raise FewshotError(f'texts are expected, but there is a {type(text).__name__} at {i}')
    if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
      raise FewshotError(f'text {i} holds half a character (a lone surrogate); decode it anew')


def mask_id(tokenizer: Any) -> int:
  """The mask token of a tokenizer; one without is refused."""
  found = next((i for m in MASKS if (i := tokenizer.token_to_id(m)) is not None), None)
  if found is None:
    raise FewshotError(f'this tokenizer has no mask token, {" or ".join(MASKS)}, for a {{mask}}')
  return int(found)


def check_literals(tokenizer: Any, made: Sequence[Template], reads: Reads) -> None:
  """Refuses a template that spells the mask token of a masked model: a slot is {mask}."""
  known = [m for m in MASKS if tokenizer.token_to_id(m) is not None][:1]
  for template in made if reads == 'masks' else ():
    odd = [m for m in known if any(m in piece for piece in template.pieces[::2])]
    if odd:
      raise FewshotError(
        f'template {template.text!r} has the mask token {odd[0]} in it; write {{mask}} for a slot'
      )


def _without_slot(template: Template) -> Template:
  """The template without its slot, which must be its end."""
  *before, last, rest = template.pieces
  if template.slots != 1 or last != MASK or rest.strip():
    raise FewshotError(
      f'template {template.text!r}: this model predicts what comes next, so that its one {{mask}} '
      'is the end of the text'
    )
  # The space before a word belongs to the word's token.
  before[-1] = before[-1].rstrip(' ')
  return Template(template.text, tuple(before))


def fitted(
  tokenizer: Any, template: Template, examples: Sequence[Fields], max_length: int, shown: str,
  behind: Sequence[str],
) -> tuple[list[str], np.ndarray]:  # fmt: skip
  """The filled texts, fields cut at tokens where the whole is longer than `max_length`; which."""
  texts = [template.fill(e, shown) + b for e, b in zip(examples, behind, strict=True)]
  found = tokenizer.encode_batch(texts)
  cut = np.array([len(e.ids) > max_length for e in found])
  for i in map(int, np.flatnonzero(cut)):
    e, example = found[i], dict(examples[i])
    while len(e.ids) > max_length:
      example = _shorter(tokenizer, template, example, len(e.ids) - max_length)
      texts[i] = template.fill(example, shown) + behind[i]
      e = tokenizer.encode(texts[i])
  return texts, cut


def _shorter(tokenizer: Any, template: Template, example: Fields, by: int) -> dict[str, str]:
  """The example whose longest field has up to `by` tokens less, at least one."""
  sizes = {f: tokenizer.encode(example[f], add_special_tokens=False) for f in template.fields}
  longest = max(sizes, key=lambda f: len(sizes[f].ids))
  others = sorted((len(e.ids) for e in sizes.values()), reverse=True)
  least = others[1] if len(others) > 1 else 0  # Then another field is as long.
  have = len(sizes[longest].ids)
  if have == 0:
    raise FewshotError(
      f'template {template.text!r} alone is longer than max_length; raise max_length, or shorten it'
    )
  keep = max(have - by, min(least, have - 1), 0)
  ends = [end for _, end in sizes[longest].offsets]
  while keep and ends[keep - 1] >= len(example[longest]):
    keep -= 1  # The tokens of one character end together.
  return {**example, longest: example[longest][: ends[keep - 1] if keep else 0]}


def _slots(
  tokens: np.ndarray, mask_id: int, template: Template, texts: Sequence[str], mask: str
) -> np.ndarray:
  """The places [N, M] of the template's mask tokens; those of an example's own text are refused."""
  at = tokens == mask_id
  odd = np.flatnonzero(at.sum(1) != template.slots)
  if len(odd):
    text = texts[odd[0]]
    shown = text if len(text) <= 120 else text[:90] + ' ... ' + text[-25:]
    raise FewshotError(
      f'a text has the mask token {mask} in it, where template {template.text!r} has '
      f'{template.slots} of its own, and would be read there; take it out of {shown!r}'
    )
  return np.nonzero(at)[1].reshape(len(tokens), template.slots).astype(np.int32)
