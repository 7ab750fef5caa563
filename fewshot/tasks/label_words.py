"""Label words: the tokens that they are where they stand in a text, and what is no word."""

from collections.abc import Sequence
from typing import Any

from fewshot.errors import FewshotError, brief

UNKNOWN = ('[UNK]', '<unk>')


def tokens_of(
  tokenizer: Any, word: str, several: bool, before: Sequence[str] = ('a ',)
) -> tuple[int, ...]:
  """The tokens of a word behind each text of `before`: the same behind all.

  Raises:
    FewshotError: a word that is unknown, or a token of another kind, or not one token where it
      has to be, or that differs by what stands before it.
  """
  found = {_behind(tokenizer, text, word) for text in before}
  named = lambda ids: ', '.join(str(tokenizer.id_to_token(i)) for i in ids)  # noqa: E731
  if len(found) > 1:
    raise FewshotError(
      f'the label word {word!r} is other tokens in other templates, '
      f'{" and ".join(sorted(map(named, found)))}; write a space before each {{mask}}, or none'
    )
  (ids,) = found
  special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
  special |= {tokenizer.token_to_id(t) for t in (*UNKNOWN, _unknown(tokenizer)) if t}
  if not ids or special & set(ids):
    raise FewshotError(
      f'the label word {word!r} is no word to this tokenizer but {named(ids) or "nothing"}; take '
      'another word'
    )
  if len(ids) > 1 and not several:
    parts = brief([str(tokenizer.id_to_token(i)) for i in ids])
    raise FewshotError(
      f'the label word {word!r} is {len(ids)} tokens ({parts}); take a word of one, or '
      "score='likelihood'"
    )
  return ids


def check_distinct(
  texts: Sequence[Sequence[str]], words: Sequence[Sequence[tuple[int, ...]]]
) -> None:
  """Refuses two words, of one class or of two, that are the same tokens."""
  seen: dict[tuple[int, ...], str] = {}
  for of_texts, of_class in zip(texts, words, strict=True):
    for text, ids in zip(of_texts, of_class, strict=True):
      if ids in seen:
        raise FewshotError(
          f'the label words {seen[ids]!r} and {text!r} are the same token; take words that differ'
        )
      seen[ids] = text


def check_slots(
  texts: Sequence[Sequence[str]], words: Sequence[Sequence[tuple[int, ...]]], slots: int
) -> None:
  """Refuses a word of more tokens than a masked model has slots to read them at."""
  for of_texts, of_class in zip(texts, words, strict=True):
    for text, ids in zip(of_texts, of_class, strict=True):
      if len(ids) > slots:
        raise FewshotError(
          f'the label word {text!r} is {len(ids)} tokens, and a template of this prompt has '
          f'{slots} {{mask}}; write as many, {"{mask}" * len(ids)}, or take a shorter word'
        )


def _behind(tokenizer: Any, before: str, word: str) -> tuple[int, ...]:
  """The tokens that a word adds to a text; those of the word alone where the two merge."""
  ids = lambda text: tuple(tokenizer.encode(text, add_special_tokens=False).ids)  # noqa: E731
  # The space before a word belongs to the word's token.
  first, both = ids(before.rstrip(' ')), ids(before + word)
  return both[len(first) :] if both[: len(first)] == first else ids(word)


def _unknown(tokenizer: Any) -> str | None:
  """What the tokenizer puts for what it does not know."""
  found = getattr(tokenizer.model, 'unk_token', None)
  return found if isinstance(found, str) else None
