"""The table of named assets: what each is, its licence, where it comes from and its sha256s."""

from fewshot.catalog.data import DATA
from fewshot.catalog.weights import WEIGHTS
from fewshot.fetch import Asset

ASSETS: dict[str, Asset] = {asset.name: asset for asset in (*WEIGHTS, *DATA)}
