"""Small files as PyTorch saves them, and what transformers' tokenizers make of texts."""

import json
from pathlib import Path

import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

TEXTS = [
  'The cat sat on the mat.',
  "  It's  12,345 tokens;   isn't it?",
  'naïve café, UPPER lower',
  'newlines\n\nand\ttabs ',
  '',
]
CORPUS = ['the cat sat on the mat', "it's 12345 tokens; isn't it?", 'café naïve lower upper'] * 20


def write(root: Path) -> None:
  """torch-files/ and tokenizers/."""
  _torch_files(root / 'torch-files')
  _tokenizers(root / 'tokenizers')


def _torch_files(folder: Path) -> None:
  folder.mkdir(exist_ok=True)
  generator = torch.Generator().manual_seed(0)
  base = torch.randn(6, 4, generator=generator)
  tensors = {
    'plain': base,
    'transposed': base.T,
    'sliced': base[1:5:2, 1:],
    'expanded': base[:1].expand(3, 4),
    'scalar': torch.tensor(2.5),
    'empty': torch.zeros(0, 3),
    'parameter': torch.nn.Parameter(torch.randn(3, generator=generator)),
    'double': base.double() / 3,
    'half': base.half(),
    'bfloat16': base.bfloat16(),
    'long': torch.arange(5) * 3 - 7,
    'int8': torch.arange(-2, 3, dtype=torch.int8),
    'bool': base > 0,
  }
  save_file(
    {k: v.detach().clone().contiguous() for k, v in tensors.items()},
    folder / 'expected.safetensors',
  )
  torch.save(tensors, folder / 'zip.pth')
  torch.save(tensors, folder / 'legacy.pth', _use_new_zipfile_serialization=False)
  torch.save(
    {'state_dict': tensors, 'epoch': 3, 'lr': 0.1, 'history': [1, 2, (3,)]},
    folder / 'checkpoint.pt',
  )
  torch.save(torch.nn.Linear(2, 2), folder / 'module.pt')


def _tokenizers(root: Path) -> None:
  root.mkdir(exist_ok=True)
  for kind in ('gpt2', 'roberta', 'clip'):
    folder = root / kind
    folder.mkdir(exist_ok=True)
    made = {'gpt2': _gpt2, 'roberta': _roberta, 'clip': _clip}[kind](folder)
    _expect(folder, made)
  for kind, model in (('t5', 'unigram'), ('llama', 'bpe')):
    folder = root / kind
    folder.mkdir(exist_ok=True)
    _sentencepiece(folder, kind, model)


def _byte_level(folder: Path, special: list[str], suffix: str = '') -> tuple[str, str]:
  trained = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix=suffix))
  split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  trained.pre_tokenizer = split
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=600 if suffix else 340,
    initial_alphabet=alphabet,
    special_tokens=special,
    end_of_word_suffix=suffix,
    show_progress=False,
  )
  trained.train_from_iterator(CORPUS, trainer)
  trained.model.save(str(folder))
  merges = folder / 'merges.txt'
  return str(folder / 'vocab.json'), str(merges)


def _gpt2(folder: Path) -> transformers.PreTrainedTokenizerBase:
  return transformers.GPT2Tokenizer(*_byte_level(folder, ['<|endoftext|>']))


def _roberta(folder: Path) -> transformers.PreTrainedTokenizerBase:
  special = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
  return transformers.RobertaTokenizer(*_byte_level(folder, special))


def _clip(folder: Path) -> transformers.PreTrainedTokenizerBase:
  special = ['<|startoftext|>', '<|endoftext|>']
  vocab, merges = _byte_level(folder, special, '</w>')
  words = json.loads(Path(vocab).read_text())
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  for text in (f'{c}</w>' for c in sorted(alphabet)):
    words.setdefault(text, len(words))  # Of the real one each byte also ends words.
  Path(vocab).write_text(json.dumps(words))
  return transformers.CLIPTokenizer(vocab, merges)


def _sentencepiece(folder: Path, kind: str, model: str) -> None:
  file = folder / 'spiece.model'
  special = {'t5': {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}, 'llama': {}}[kind]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_prefix=str(folder / 'spiece'),
    model_type=model,
    vocab_size=300 if model == 'bpe' else 60,
    byte_fallback=model == 'bpe',
    normalization_rule_name='identity' if model == 'bpe' else 'nmt_nfkc',
    remove_extra_whitespaces=model == 'unigram',
    minloglevel=2,
    hard_vocab_limit=False,
    **special,
  )
  (folder / 'spiece.vocab').unlink()
  library = sentencepiece.SentencePieceProcessor(model_file=str(file))
  around = {'t5': ([], [1]), 'llama': ([1], [])}[kind]
  ids = [[*around[0], *library.encode(text), *around[1]] for text in TEXTS]
  _save(folder, ids, f'sentencepiece {sentencepiece.__version__}')


def _expect(folder: Path, made: transformers.PreTrainedTokenizerBase) -> None:
  _save(folder, [made(t)['input_ids'] for t in TEXTS], f'transformers {transformers.__version__}')


def _save(folder: Path, ids: list[list[int]], made_by: str) -> None:
  (folder / 'expected.json').write_text(
    json.dumps({'made_by': made_by, 'texts': TEXTS, 'ids': ids}, ensure_ascii=False)
  )
