"""The report in a browser: it sorts, filters, opens runs, fits any width, by keyboard alone."""

import shutil

import pytest

from fewshot import report
from tests.report import folder as folders

selenium = pytest.importorskip('selenium', reason='selenium is not installed')
CHROME = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), ''
)
DRIVER = shutil.which('chromedriver')
FLAGS = (
  '--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-sync',
  '--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage',
)  # fmt: skip
pytestmark = pytest.mark.skipif(
  not (CHROME and DRIVER), reason='chromium and chromedriver are not installed'
)


@pytest.fixture(scope='module')
def url(tmp_path_factory):
  folder = folders.make(tmp_path_factory.mktemp('browser') / 'pets')
  (folder / 'report.html').write_bytes(report.build(folder).page)
  return (folder / 'report.html').as_uri()


@pytest.fixture(scope='module')
def driver(tmp_path_factory):
  from selenium import webdriver
  from selenium.webdriver.chrome.service import Service

  options = webdriver.ChromeOptions()
  options.binary_location = CHROME
  for flag in (*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("profile")}'):
    options.add_argument(flag)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  browser = webdriver.Chrome(options=options, service=Service(DRIVER))
  yield browser
  browser.quit()


@pytest.fixture
def page(driver, url):
  """The page, loaded anew; it ends without a line on the console."""
  driver.get('about:blank')
  driver.get(url)
  yield driver.execute_script
  assert driver.get_log('browser') == []


CELLS = """
return [...document.querySelectorAll('#table tbody tr')]
  .map((row) => row.querySelector('.open').textContent);
"""


def labels(page):
  return page(CELLS)


def sort(page, name):
  page(f"[...document.querySelectorAll('th button')].find(b => b.textContent === '{name}').click()")


def test_it_starts_with_the_best_of_each_setting(page):
  lora = 'chain(lora(rank=4), linear())'
  assert labels(page) == [lora, 'linear()', 'broken()', lora, 'linear()']
  assert page("return document.querySelectorAll('#table .best').length") == 2
  assert page("return document.getElementById('lede').textContent").startswith(
    '10 runs · 3 methods · toy · tiny · 2 settings · 2 failed · 1 collapsed'
  )


def test_it_sorts_by_a_column_both_ways_and_says_so(page):
  sort(page, 'seconds')
  sort(page, 'accuracy (%)')
  assert labels(page)[0] == 'chain(lora(rank=4), linear())' and labels(page)[-1] == 'broken()'
  sort(page, 'accuracy (%)')
  assert labels(page)[0] == 'linear()' and labels(page)[-1] == 'broken()'  # No value comes last.
  assert page("return document.querySelector('th[aria-sort]').ariaSort") == 'ascending'
  sort(page, 'method')
  assert labels(page)[0] == 'broken()'


def test_it_filters_by_words_by_shots_and_by_trouble(driver, page):
  words = driver.find_element('id', 'words')
  words.send_keys('LORA toy')
  assert labels(page) == ['chain(lora(rank=4), linear())'] * 2
  assert driver.find_element('id', 'count').text == '2 of 5 rows, 2 match'
  choose = (
    "const s = document.getElementById('{}'); s.value = '{}'; s.dispatchEvent(new Event('change'))"
  )
  page(choose.format('filter-setting', 'K = 8'))
  assert len(labels(page)) == 1
  words.clear()
  words.send_keys(' ')
  page(choose.format('filter-setting', ''))
  page(choose.format('filter-trouble', 'x'))
  assert labels(page) == ['broken()', 'chain(lora(rank=4), linear())']


def test_a_run_opens_with_its_wrong_predictions_first(driver, page):
  page(
    "[...document.querySelectorAll('#table .open')].find(b => b.textContent === 'linear()').click()"
  )
  said = driver.find_element('id', 'dialog').text
  for part in ('split 0, seed 0: 25.0', '2 of 4 items are wrong', 'Training loss', '73 % sure'):
    assert part in said
  items = page(
    "return [...document.querySelectorAll('.items p:first-child')].map(p => p.textContent)"
  )
  assert items[0] == 'a cat sleeps' and items[2] == folders.NASTY  # As text, not as HTML.
  page("document.querySelector('.check input').click()")
  assert page("return document.querySelectorAll('.items li').length") == 2
  page("document.querySelectorAll('#dialog details').forEach(d => d.open = true)")
  said = driver.find_element('id', 'dialog').text
  for part in ('lora(rank=4)', 'fewshot run pets.py', 'engine.loop', folders.TEST):
    assert part in said
  page("document.querySelectorAll('.runs .open')[1].click()")
  assert 'split 1, seed 0: 75.0' in driver.find_element('id', 'detail').text
  assert page('return location.hash') == f'#run={1:016x}'


def test_a_run_has_an_address(driver, page, url):
  driver.get('about:blank')
  driver.get(f'{url}#run={8:016x}')
  assert 'the loss was not finite' in driver.find_element('id', 'dialog').text


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [320, 400, 1600])
def test_it_fits_the_window(driver, page, width, dark):
  wide = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': False}
  driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', wide)
  theme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
  driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [theme]})
  over = 'return document.documentElement.scrollWidth - document.documentElement.clientWidth'
  assert page(over) == 0
  # A telephone has no room for the columns that say where a row belongs: a line under it does.
  shown = "return getComputedStyle(document.querySelector('{}')).display"
  assert (page(shown.format('.where')) == 'block') == (width < 576)
  assert (page(shown.format('td.place')) == 'none') == (width < 576)
  page("document.querySelector('#table .open').click()")
  page("document.querySelectorAll('#dialog details').forEach(d => d.open = true)")
  assert page(over) == 0
  inside = "const d = document.getElementById('dialog'); return d.scrollWidth - d.clientWidth"
  assert page(inside) == 0
  assert page(CONTRAST) >= 4.5


# The least contrast of what is read, by the formula of WCAG 2.1.
CONTRAST = """
const level = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
    .map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const page = level(getComputedStyle(document.body).backgroundColor);
const read = ['.eyebrow', 'h1', '.lede', 'nav a', 'td', 'th button', '.small', '.said', '.said b',
  'figcaption', '.trouble'].map((s) => document.querySelector(s)).filter(Boolean);
return Math.min(...read.map((e) => {
  const [a, b] = [level(getComputedStyle(e).color), page];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}));
"""


def test_tab_alone_reaches_sorts_filters_and_runs(driver, page):
  from selenium.webdriver import ActionChains, Keys

  press = lambda *keys: ActionChains(driver).send_keys(*keys).perform()  # noqa: E731
  at = 'const e = document.activeElement; return e.id || e.className || e.textContent'
  seen = []
  while not seen or seen[-1] != 'open':
    press(Keys.TAB)
    seen.append(page(at))
    assert len(seen) < 40, seen
  for stop in ('Results', 'words', 'filter-setting', 'filter-trouble', 'scroll', 'method'):
    assert stop in seen, stop
  outline = 'return getComputedStyle(document.activeElement).outlineStyle'
  assert page(outline) == 'solid'
  press(Keys.ENTER)
  assert page("return document.getElementById('dialog').open")
  assert page('return document.activeElement.textContent') == 'Close'
  press(Keys.ESCAPE)
  assert not page("return document.getElementById('dialog').open")
  assert page(at) == 'open'  # The focus is where it was.
