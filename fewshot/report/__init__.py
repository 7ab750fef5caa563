"""One HTML page of a folder of records: a table, figures and every run, in a file of its own."""

from fewshot.report.data import Limits
from fewshot.report.page import Report, build, gathered

__all__ = ['Limits', 'Report', 'build', 'gathered']
