'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const { rows, runs } = data;
  const byId = (id) => document.getElementById(id);
  const NONE = '–', STEP = 100, ITEMS = 40;

  // make('td.text', {title: 'x'}, 'text', child): texts are never parsed as HTML.
  const make = (spec, attributes = {}, ...children) => {
    const [tag, ...classes] = spec.split('.');
    const element = document.createElement(tag);
    if (classes.length) element.className = classes.join(' ');
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
      else if (value !== false && value !== null) element.setAttribute(name, value === true ? '' : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const draw = (tag, attributes = {}, text = '') => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const many = (n, noun) => `${n.toLocaleString('en')} ${noun}${n === 1 ? '' : 's'}`;
  const percent = (x, digits = 1) => (x === null || x === undefined ? NONE : (100 * x).toFixed(digits));
  const seconds = (x) => (x === null || x === undefined ? NONE : x < 10 ? x.toFixed(2) : Math.round(x).toLocaleString('en'));
  const memory = (x) => (x === null ? NONE : `${(x / 2 ** 20).toLocaleString('en', { maximumFractionDigits: 0 })} MiB`);
  const share = (row) => {
    const x = row.total ? 100 * row.trained / row.total : 0;
    return x > 0 && x < 0.01 ? '<0.01 %' : `${x.toFixed(2)} %`;
  };
  const distinct = (values) => [...new Set(values)];
  const natural = new Intl.Collator('en', { numeric: true }).compare;

  // The members of each row, and the best mean of each setting.
  const place = (row) => JSON.stringify([row.task, row.model, row.setting, row.prompt]);
  const best = new Map();
  rows.forEach((row, i) => {
    row.at = i;
    row.members = [];
    row.words = [row.label, row.fit, row.task, row.model, row.setting, row.prompt].join(' ').toLowerCase();
    if (row.mean !== null) best.set(place(row), Math.max(best.get(place(row)) ?? -1, row.mean));
  });
  runs.forEach((run, i) => rows[run.row].members.push(i));
  // Settings in the order of the records, the best first in each.
  const settings = distinct(rows.map(place));
  const rank = new Map(settings.map((name, i) => [name, i]));
  const ranked = [...rows].sort((a, b) => rank.get(place(a)) - rank.get(place(b)) || (b.mean ?? -1) - (a.mean ?? -1) || a.at - b.at);
  const episodic = rows.some((row) => row.spread.includes('episodes'));
  const digits = episodic ? 2 : 1;

  // The table.
  const ends = (row) => [row.mean - (row.std ?? 0), row.mean + (row.std ?? 0)];
  const scored = rows.filter((row) => row.mean !== null).map(ends);
  const low = Math.max(0, Math.min(...scored.map((e) => e[0]))), high = Math.min(1, Math.max(...scored.map((e) => e[1])));
  const across = (x) => (high > low ? 2 + 96 * (x - low) / (high - low) : 50);
  const interval = (row) => {
    if (row.mean === null) return NONE;
    const svg = draw('svg', { class: 'interval', viewBox: '0 0 100 12', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
    const [a, b] = ends(row).map((x) => across(Math.min(high, Math.max(low, x))));
    const line = (x, y, w, h, fill) => svg.append(draw('rect', { x, y, width: w, height: h, fill, rx: h / 2 }));
    line(0, 5.6, 100, 0.8, 'var(--rule)');
    line(a, 5, b - a, 2, 'var(--sky)');
    line(across(row.mean) - 1.6, 1.5, 3.2, 9, 'var(--blue)');
    return svg;
  };
  const trouble = (row) => row.failed + row.collapsed + row.lost;
  const counted = (row) => {
    const notes = [[row.failed, 'failed'], [row.collapsed, 'collapsed']].filter(([n]) => n).map(([n, word]) => `${n} ${word}`);
    return notes.length ? make('span.trouble', {}, `${row.runs}, ${notes.join(', ')}`) : `${row.runs}`;
  };
  const columns = [
    { name: 'method', text: true, value: (r) => r.label, cell: opener },
    { name: 'task', text: true, value: (r) => r.task, constant: true, kind: 'place' },
    { name: 'model', text: true, value: (r) => r.model, constant: true, kind: 'place.fold' },
    { name: 'prompt', text: true, value: (r) => r.prompt, constant: true, kind: 'place.fold' },
    { name: episodic ? 'setting' : 'K', text: episodic, value: (r) => (episodic ? r.setting : r.k), constant: true, kind: 'place' },
    { name: 'accuracy (%)', value: (r) => r.mean, cell: accuracy },
    { name: 'mean ± spread', value: null, cell: interval },
    { name: '± is', text: true, value: (r) => r.spread, cell: (r) => make('span.small', {}, r.spread) },
    { name: 'runs', value: (r) => trouble(r), cell: counted },
    { name: 'collapsed (%)', value: (r) => (r.runs ? r.collapsed / r.runs : 0), cell: (r) => (r.runs ? (100 * r.collapsed / r.runs).toFixed(0) : NONE) },
    { name: 'trained', value: (r) => r.trained, cell: (r) => make('span', {}, r.trained.toLocaleString('en'), ' ', make('span.small', {}, share(r))) },
    { name: 'seconds', value: (r) => r.seconds, cell: (r) => seconds(r.seconds) },
    { name: 'memory', value: (r) => r.memory, cell: (r) => memory(r.memory) },
  ].filter((c) => c.value === null || (c.constant ? distinct(rows.map(c.value)).length > 1 : rows.some((r) => c.value(r) !== null)));

  // On a narrow screen the columns that say where a row belongs are a line under its method.
  const varied = ['task', 'model', 'prompt', 'setting'].filter((field) => distinct(rows.map((r) => r[field])).length > 1);
  function opener(row) {
    const button = make('button.open', { type: 'button', onclick: () => openRow(row, row.members[0]) }, ...spelled(row.label));
    return make('div', {}, button, make('div.small.where', {}, varied.map((field) => row[field]).filter(Boolean).join(' · ')));
  }
  // A spelling may break after what opens a call or names an argument.
  function spelled(label) {
    return label.split(/(?<=[(=|/])(?!\))/).flatMap((part) => [part, make('wbr')]);
  }
  function accuracy(row) {
    if (row.mean === null) return NONE;
    const spread = row.std === null ? '' : ` ± ${percent(row.std, digits)}`;
    return make(row.mean === best.get(place(row)) ? 'span.best' : 'span', {}, percent(row.mean, digits) + spread);
  }

  const state = { column: null, down: false, limit: STEP, words: '', chosen: {}, trouble: false };
  const passing = () => ranked.filter((row) =>
    state.words.split(/\s+/).every((w) => row.words.includes(w))
    && Object.entries(state.chosen).every(([field, value]) => value === '' || String(row[field]) === value)
    && (!state.trouble || trouble(row)));
  const sorted = (found) => {
    const column = state.column;
    if (!column) return found;
    const order = (a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      if (x === null || y === null) return (x === null) - (y === null);  // What has no value comes last.
      const less = typeof x === 'number' ? x - y : natural(x, y);
      return (state.down ? -less : less) || a.at - b.at;
    };
    return [...found].sort(order);
  };
  const head = make('tr');
  const headings = columns.map((column) => {
    const th = make(['th', column.text && 'text', column.kind].filter(Boolean).join('.'), { scope: 'col' });
    if (column.value === null) th.append(make('span', {}, column.name));
    else th.append(make('button', { type: 'button', onclick: () => sortBy(column) }, column.name));
    head.append(th);
    return th;
  });
  document.querySelector('#table thead').append(head);
  function sortBy(column) {
    state.down = state.column === column ? !state.down : !column.text;
    state.column = column;
    headings.forEach((th, i) => {
      if (columns[i] === column) th.setAttribute('aria-sort', state.down ? 'descending' : 'ascending');
      else th.removeAttribute('aria-sort');
    });
    show();
  }
  function show() {
    const found = sorted(passing());
    const lines = found.slice(0, state.limit).map((row) => make('tr', {}, ...columns.map((column) => {
      const content = column.cell ? column.cell(row) : String(column.value(row));
      return make(['td', column.text && 'text', column.kind].filter(Boolean).join('.'), {}, content);
    })));
    document.querySelector('#table tbody').replaceChildren(...lines);
    const shown = Math.min(state.limit, found.length);
    byId('count').textContent = `${shown.toLocaleString('en')} of ${many(rows.length, 'row')}`
      + (found.length < rows.length ? `, ${found.length.toLocaleString('en')} match` : '');
    byId('more').hidden = found.length <= state.limit;
    byId('more').textContent = `Show ${Math.min(500, found.length - shown)} more`;
  }
  byId('more').addEventListener('click', () => { state.limit += 500; show(); });

  // The filters.
  const controls = byId('controls');
  controls.addEventListener('submit', (event) => event.preventDefault());
  const changed = () => { state.limit = STEP; show(); };
  controls.append(make('label.wide', {}, 'Filter by words', make('input', {
    type: 'search', id: 'words', autocomplete: 'off', spellcheck: 'false',
    oninput: (event) => { state.words = event.target.value.toLowerCase().trim(); changed(); },
  })));
  for (const [field, name] of [['task', 'Task'], ['model', 'Model'], ['setting', episodic ? 'Setting' : 'Shots']]) {
    const values = distinct(rows.map((row) => String(row[field]))).sort(natural);
    if (values.length < 2) continue;
    const options = [make('option', { value: '' }, 'all'), ...values.map((v) => make('option', { value: v }, v))];
    controls.append(make('label', {}, name, make('select', {
      id: `filter-${field}`, onchange: (event) => { state.chosen[field] = event.target.value; changed(); },
    }, ...options)));
  }
  if (rows.some(trouble)) {
    controls.append(make('label', {}, 'Runs', make('select', {
      id: 'filter-trouble', onchange: (event) => { state.trouble = event.target.value !== ''; changed(); },
    }, make('option', { value: '' }, 'all'), make('option', { value: 'x' }, 'failed or collapsed'))));
  }

  // The head of the page, and how to read the table.
  const only = (field, noun) => {
    const values = distinct(rows.map((row) => row[field]));
    return values.length === 1 ? values[0] : many(values.length, noun);
  };
  const lost = rows.reduce((n, row) => n + row.failed, 0), same = rows.reduce((n, row) => n + row.collapsed, 0);
  byId('lede').textContent = [
    many(runs.length, 'run'), many(distinct(rows.map((r) => r.method)).length, 'method'), only('task', 'task'),
    only('model', 'model'), only('setting', 'setting'), lost ? `${lost} failed` : '', same ? `${same} collapsed` : '',
  ].filter(Boolean).join(' · ');
  byId('reading').textContent = [
    `${distinct(rows.map((r) => r.spread.replace(/, n = .*/, ''))).map((s) => `± is ${s}`).join('; ')}.`,
    'The best mean of each setting is bold.',
    rows.some((r) => r.collapsed) ? 'A collapsed run gives one class for all, or is no better than chance; it enters its mean.' : '',
    episodic ? 'Seconds are those of the test.' : 'Seconds are those of a vmapped chunk divided by its runs and exclude compilation; memory is that of the compiled program.',
    ...data.left,
  ].filter(Boolean).join(' ');

  // A run.
  const dialog = byId('dialog');
  const facts = (pairs) => make('div.scroll', { tabindex: '0', role: 'region', 'aria-label': 'Facts' }, make('table.facts', {}, make('tbody', {},
    ...pairs.map(([name, ...cells]) => make('tr', {}, make('td', {}, name), ...cells.map((c) => make(typeof c === 'number' ? 'td.number' : 'td', {}, typeof c === 'number' ? c.toLocaleString('en') : c)))))));
  const spoken = (value) => (typeof value === 'string' ? value || '(empty)' : JSON.stringify(value));
  const folded = (title, content) => make('details', {}, make('summary', {}, title), content);
  const place_of = (run) => [`split ${run.split ?? NONE}`, `seed ${run.seed}`, ...Object.entries(run.hyper ?? {}).map(([k, v]) => `${k} ${v}`)].join(', ');

  function openRow(row, index) {
    const run = runs[index];
    history.replaceState(null, '', run ? `#run=${run.id}` : '#results');
    const close = make('button.quiet.close', { type: 'button', onclick: () => dialog.close() }, 'Close');
    const about = [row.task, row.setting, row.model, row.prompt, row.fit].filter(Boolean).join(' · ');
    const summary = row.mean === null ? 'no run has an accuracy' : `${percent(row.mean, digits)} ${row.std === null ? '' : `± ${percent(row.std, digits)} `}% (${row.spread})`;
    const detail = make('div', { id: 'detail' });
    const table = make('table', {}, make('thead', {}, make('tr', {}, ...['run', 'accuracy (%)', 'n', 'status', 'seconds'].map((name, i) => make(i === 0 || i === 3 ? 'th.text' : 'th', { scope: 'col' }, name)))));
    const body = make('tbody', {}, ...row.members.map((at) => {
      const one = runs[at];
      const button = make('button.open', { type: 'button', onclick: () => select(at) }, place_of(one));
      const status = make(one.status === 'ok' ? 'span' : 'span.trouble', {}, one.status);
      return make('tr', { 'data-run': at }, make('td.text', {}, button), make('td', {}, percent(one.value, digits)),
        make('td', {}, one.n === null ? NONE : one.n.toLocaleString('en')), make('td.text', {}, status), make('td', {}, seconds(one.seconds)));
    }));
    table.append(body);
    function select(at) {
      history.replaceState(null, '', `#run=${runs[at].id}`);
      for (const line of body.children) line.setAttribute('aria-current', line.dataset.run === String(at));
      detail.replaceChildren(...describe(runs[at]));
    }
    dialog.replaceChildren(make('div', {}, close, make('h2', { id: 'dialog-title' }, ...spelled(row.label)),
      make('p.note', {}, about), make('p', {}, summary),
      make('div.scroll.runs', { tabindex: '0', role: 'region', 'aria-label': 'Runs' }, table), detail));
    if (run) select(index);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    close.focus();
  }
  dialog.addEventListener('close', () => history.replaceState(null, '', '#results'));
  dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });

  function describe(run) {
    const shared = (name) => data.shared[name][run[name]] ?? {};
    const config = { ...data.base, ...run.config };
    const names = Object.keys(config).filter((k) => config[k] !== null).sort(natural);
    const flight = shared('preflight');
    const spread = run.spread === null || run.spread === undefined ? '' : ` ± ${percent(run.spread, digits)}`;
    const heading = `${place_of(run)}: ${run.value === null ? 'no accuracy' : `${percent(run.value, digits)}${spread} %`}`;
    const parts = [make('h3', {}, heading)];
    if (run.value !== null && run.n) parts.push(make('p.note', {}, `± is ${run.episodes ? 'half of the 95 % interval' : 'the standard error'} over ${run.n.toLocaleString('en')} ${run.episodes ? 'episodes' : 'test items'}.`));
    if (run.cause) parts.push(make('p.trouble', {}, run.cause));
    if (run.curve) parts.push(make('h3', {}, 'Training loss'), curve(run));
    if (run.episodes) parts.push(make('h3', {}, 'Episodes by accuracy'), histogram(run));
    parts.push(make('h3', {}, 'Predictions'), ...predictions(run));
    const trains = flight.rows
      ? facts(flight.rows.map((r) => [make('code', {}, r.rule), r.count, r.leaves]))
      : make('p.note', {}, `${run.trained.toLocaleString('en')} parameters train. Which ones was not kept beside these records.`);
    parts.push(folded('What trains', trains));
    if (run.training) parts.push(folded('Meta-training', facts(Object.entries(run.training).map(([k, v]) => [k, spoken(v)]))));
    if (run.stages) parts.push(folded('Stages', facts(run.stages.map((s, i) => [`${i + 1}`, JSON.stringify(s)]))));
    parts.push(folded('Config', facts(names.map((k) => [k, spoken(config[k])]))));
    const from = [['run', run.id], ...Object.entries(shared('hashes')), ...Object.entries(shared('versions')), ...Object.entries(shared('machine'))];
    if (flight.command) from.push(['command', flight.command]);
    parts.push(folded('Provenance', facts(from.map(([k, v]) => [k, spoken(v)]))));
    return parts;
  }

  // Small charts, drawn here because a page of thousands of runs cannot hold them.
  function frame(width, height, label) {
    return draw('svg', { class: 'chart', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label });
  }
  function curve(run) {
    const [w, h, left, bottom] = [560, 190, 44, 34];
    const known = run.curve.filter((y) => y !== null);
    const top = Math.max(...known, 1e-9), n = run.curve.length;
    const svg = frame(w, h, `Training loss from ${known[0]} to ${known[known.length - 1]} over ${run.steps} steps`);
    const x = (i) => left + (w - left - 12) * (n > 1 ? i / (n - 1) : 0.5), y = (v) => 8 + (h - bottom - 8) * (1 - v / top);
    for (const v of [0, top / 2, top]) {
      svg.append(draw('line', { x1: left, x2: w - 12, y1: y(v), y2: y(v), stroke: 'var(--rule)' }));
      svg.append(draw('text', { x: left - 6, y: y(v) + 4, 'text-anchor': 'end' }, v.toPrecision(2)));
    }
    const points = run.curve.map((v, i) => (v === null ? null : `${x(i).toFixed(1)},${y(v).toFixed(1)}`)).filter(Boolean);
    svg.append(draw('polyline', { points: points.join(' '), fill: 'none', stroke: 'var(--blue)', 'stroke-width': 1.6 }));
    svg.append(draw('text', { x: left, y: h - 18 }, '1'), draw('text', { x: w - 12, y: h - 18, 'text-anchor': 'end' }, String(run.steps)));
    svg.append(draw('text', { x: (left + w) / 2, y: h - 4, 'text-anchor': 'middle' }, 'step; loss in nats' + (n < run.steps ? `, ${n} of ${run.steps} points` : '')));
    return svg;
  }
  function histogram(run) {
    const [w, h, left, bottom] = [560, 190, 44, 34];
    const top = Math.max(...run.episodes), n = run.episodes.length, total = run.episodes.reduce((a, b) => a + b, 0);
    const svg = frame(w, h, `${total} episodes by accuracy, most in one bin ${top}`);
    const wide = (w - left - 12) / n, y = (v) => 8 + (h - bottom - 8) * (1 - v / top);
    run.episodes.forEach((v, i) => svg.append(draw('rect', { x: left + i * wide + 0.5, y: y(v), width: wide - 1, height: y(0) - y(v), fill: 'var(--sky)' })));
    svg.append(draw('line', { x1: left, x2: w - 12, y1: y(0), y2: y(0), stroke: 'var(--rule)' }));
    if (run.value !== null) svg.append(draw('line', { x1: left + run.value * wide * n, x2: left + run.value * wide * n, y1: 4, y2: y(0), stroke: 'var(--blue)', 'stroke-width': 1.6 }));
    for (const [v, anchor] of [[0, 'start'], [0.5, 'middle'], [1, 'end']]) svg.append(draw('text', { x: left + v * wide * n, y: h - 18, 'text-anchor': anchor }, `${100 * v} %`));
    svg.append(draw('text', { x: left - 6, y: y(top) + 4, 'text-anchor': 'end' }, top.toLocaleString('en')), draw('text', { x: left - 6, y: y(0), 'text-anchor': 'end' }, '0'));
    svg.append(draw('text', { x: (left + w) / 2, y: h - 4, 'text-anchor': 'middle' }, `accuracy of an episode, n = ${total.toLocaleString('en')}; line: mean`));
    return svg;
  }

  // The predictions, wrong ones first, the surest of them at the top.
  function predictions(run) {
    const set = data.sets[run.set];
    if (run.episodes) return [make('p.note', {}, `Kept by episode, not by item. The lowest: ${run.worst.map(([i, v]) => `episode ${i} (${percent(v)} %)`).join(', ')}.`)];
    if (!run.predictions || !set) {
      const said = (run.said ?? []).map((n, c) => [n, c]).filter(([n]) => n).sort((a, b) => b[0] - a[0]).slice(0, 12);
      if (!said.length) return [make('p.note', {}, 'This run has no predictions.')];
      const reason = Object.keys(data.sets).length
        ? 'They are left out of this page for its size; the note below the table says how to see them.'
        : 'The test items were not kept beside these records, so that no prediction can be shown with its text.';
      return [make('p.note', {}, reason), make('ul.pairs', {}, ...said.map(([n, c]) => make('li', {}, `class ${c}: ${n.toLocaleString('en')} times`)))];
    }
    const found = run.predictions.map((p, i) => ({
      text: set.items[i] ?? `item ${i}`, truth: set.labels[i], said: p, wrong: p !== set.labels[i], sure: run.confidence ? run.confidence[i] : null, i,
    })).sort((a, b) => b.wrong - a.wrong || (b.sure ?? 0) - (a.sure ?? 0) || a.i - b.i);
    const wrong = found.filter((f) => f.wrong), tally = new Map();
    for (const f of wrong) tally.set(`${f.truth} ${f.said}`, (tally.get(`${f.truth} ${f.said}`) ?? 0) + 1);
    const named = (key) => key.split(' ').map((c) => set.classes[c]);
    const pairs = [...tally].sort((a, b) => b[1] - a[1]).slice(0, 8).map(([key, n]) => make('li', {}, `${named(key)[0]} taken for ${named(key)[1]}: ${n}`));
    const list = make('ol.items'), more = make('button.quiet', { type: 'button' });
    const status = make('span', { role: 'status' });
    let limit = ITEMS, words = '', all = true;
    const refresh = () => {
      const left = found.filter((f) => (all || f.wrong) && `${f.text} ${set.classes[f.truth]} ${set.classes[f.said]}`.toLowerCase().includes(words));
      list.replaceChildren(...left.slice(0, limit).map((f) => make(f.wrong ? 'li.wrong' : 'li', {}, make('p', {}, f.text),
        make('p.said', {}, f.wrong ? '✗ ' : '✓ ', 'predicted ', make('b', {}, set.classes[f.said]), f.wrong ? `, true class ${set.classes[f.truth]}` : '', f.sure === null ? '' : `, ${f.sure} % sure`))));
      status.textContent = `${many(Math.min(limit, left.length), 'item')} of ${left.length.toLocaleString('en')}`;
      more.hidden = left.length <= limit;
      more.textContent = `Show ${Math.min(200, left.length - limit)} more`;
    };
    more.addEventListener('click', () => { limit += 200; refresh(); });
    const search = make('input', { type: 'search', autocomplete: 'off', oninput: (e) => { words = e.target.value.toLowerCase(); limit = ITEMS; refresh(); } });
    const check = make('input', { type: 'checkbox', onchange: (e) => { all = !e.target.checked; limit = ITEMS; refresh(); } });
    refresh();
    return [
      make('p.note', {}, `${wrong.length.toLocaleString('en')} of ${many(found.length, 'item')} are wrong; they come first${run.confidence ? ', the surest at the top' : ''}.`),
      make('ul.pairs', {}, ...pairs),
      make('form.controls', { onsubmit: (e) => e.preventDefault() }, make('label.wide', {}, 'Filter by text or class', search), make('label.check', {}, check, 'only wrong ones')),
      list, make('p.under', {}, status, more),
    ];
  }

  // Where it all comes from.
  const sets = (name) => data.shared[name].map((value, i) => [value, runs.filter((run) => run[name] === i).length]).filter(([value]) => Object.keys(value).length);
  const told = (value) => Object.entries(value).filter(([, v]) => v !== null && typeof v !== 'object').map(([k, v]) => `${k} ${v}`).join(', ');
  const commands = distinct(data.shared.preflight.map((p) => p.command).filter(Boolean));
  byId('facts').append(facts([
    ['records', `records.jsonl, sha256 ${data.file}…, ${many(runs.length, 'run')} of it shown`],
    ...sets('versions').map(([value, n]) => ['versions', `${told(value)} (${many(n, 'run')})`]),
    ...sets('machine').map(([value, n]) => ['machine', `${told(value)} (${many(n, 'run')})`]),
    ...distinct(data.shared.hashes.map((h) => h.weights).filter(Boolean)).map((h) => ['weights', h]),
    ...distinct(data.shared.hashes.map((h) => h.test).filter(Boolean)).map((h) => ['test set', h]),
    ...commands.slice(0, 20).map((c) => ['command', make('code', {}, c)]),
    ['this page', make('code', {}, data.command)],
  ]));

  show();
  const asked = /^#run=(\w+)$/.exec(location.hash);
  const at = asked ? runs.findIndex((run) => run.id === asked[1]) : -1;
  if (at >= 0) openRow(rows[runs[at].row], at);
})();
