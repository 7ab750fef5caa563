"""How figures look: Okabe and Ito's colours, quiet axes, files of the same bytes twice."""

import functools
import io
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/; the yellow is left out, too faint on white.
BLUE, VERMILION, GREEN, PURPLE = '#0072b2', '#d55e00', '#009e73', '#cc79a7'
ORANGE, SKY, GREY, INK, RULE = '#e69f00', '#56b4e9', '#5f6368', '#1f2328', '#e8eaed'
# Colour, marker and dashes each tell series apart.
SERIES = (
  (BLUE, 'o', '-'), (VERMILION, 's', '--'), (GREEN, '^', '-.'), (PURPLE, 'D', ':'),
  (ORANGE, 'v', '-'), (SKY, 'P', '--'), (INK, 'X', '-.'), (GREY, 'h', ':'),
)  # fmt: skip
WIDTH = 4.7  # Inches: a column of a paper, and of a page on a telephone.
LABEL = 64  # Characters of a line of a legend.
STYLE: dict[str, Any] = {
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': GREY,
  'axes.labelcolor': INK,
  'axes.titlecolor': INK,
  'axes.titlesize': 9,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': RULE,
  'grid.linewidth': 0.8,
  'legend.frameon': False,
  'legend.fontsize': 7.5,
  'legend.labelcolor': INK,
  'text.color': INK,
  'text.parse_math': False,
  'xtick.color': GREY,
  'ytick.color': GREY,
  'xtick.labelsize': 8,
  'ytick.labelsize': 8,
  'svg.fonttype': 'none',  # Text that can be searched, read aloud and restyled.
  'pdf.fonttype': 42,
}
# Of a PNG the program, of a PDF the day would otherwise change the bytes.
FORMATS = {
  'svg': {'Date': None, 'Creator': None},
  'pdf': {'CreationDate': None, 'Creator': None, 'Producer': None},
  'png': {'Software': None},
}


P = ParamSpec('P')
T = TypeVar('T')


def styled(draw: Callable[P, T]) -> Callable[P, T]:
  """`draw` in this style, whatever the user's own settings are; matplotlib is imported then."""

  @functools.wraps(draw)
  def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
    import matplotlib.style

    with matplotlib.style.context(['default', STYLE]):
      return draw(*args, **kwargs)

  return drawn


def new(height: float, rows: int = 1, **options: Any) -> 'tuple[Figure, list[Axes]]':
  """A figure of `rows` panels, one below the other; `options` go to its subplots."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(WIDTH, height), layout='constrained')
  FigureCanvasAgg(figure)
  panels = figure.subplots(rows, squeeze=False, **options)
  return figure, list(panels[:, 0])


def render(figure: 'Figure', format: str = 'svg', salt: str = 'fewshot') -> bytes:
  """The bytes of a figure as svg, pdf or png; the same figure gives the same bytes.

  Figures in one page need a `salt` of their own each, or their clips would share names.
  """
  import matplotlib.style

  drawn = io.BytesIO()
  with matplotlib.style.context(['default', STYLE, {'svg.hashsalt': salt}]):
    if engine := figure.get_layout_engine():
      engine.execute(figure)
      figure.set_layout_engine(None)  # Else all is drawn a first time for the layout alone.
    transparent = format == 'svg'
    figure.savefig(drawn, format=format, dpi=200, metadata=FORMATS[format], transparent=transparent)
    figure.set_layout_engine(engine)
  return drawn.getvalue()


def wrapped(label: str, width: int = LABEL, lines: int = 2) -> str:
  """A label on at most so many lines.

  >>> wrapped('chain(lora(rank=8), linear())', width=20)
  'chain(lora(rank=8),\\nlinear())'
  """
  found = textwrap.wrap(label, width) or ['']
  if len(found) > lines:
    rest = ' '.join(found[lines - 1 :])
    found = [*found[: lines - 1], f'{rest[: width - 1]}…']
  return '\n'.join(found)


def note(axes: 'Axes', text: str) -> None:
  """A quiet line above the panel: what bars and bands are, of how many."""
  axes.set_title(wrapped(text, 74), fontsize=7.5, fontweight='normal', color=GREY)


def legend(figure: 'Figure', handles: list[Any], labels: list[str]) -> None:
  """A legend below the panels, which makes room for it; a spelling is too long to stand in one."""
  shown = [wrapped(label) for label in labels]
  figure.legend(handles, shown, loc='outside lower left', handlelength=2.2, labelspacing=0.35)
  lines = sum(label.count('\n') + 1 for label in shown)
  figure.set_figheight(figure.get_figheight() + 0.16 * lines + 0.1)
