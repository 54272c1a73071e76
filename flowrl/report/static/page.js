"use strict";
/* The page of one or several runs. A saved page finds every answer in its own data; a followed one asks the server that
   sent it. Words of users, prompts and completions become text nodes only, never markup. */
(() => {
  const $ = (id) => document.getElementById(id);
  const saved = JSON.parse($("data").textContent);
  const COLORS = 8, OVERVIEW_MS = 3000, GROUPS = ["rewards", "diagnostics", "others", "time", "memory", "alarms"];
  const runs = [];
  const look = { smoothing: 0, axis: "step", focus: 0, zoom: null };
  let token = "";

  /* ------------------------------------------------------------------------------------------------ small things */
  function make(tag, facts = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(facts)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "text") node.textContent = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const fill = (node, ...children) => node.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
  /* Whether something that a node shows is another than it shows now; what people opened or focused in it stays otherwise. */
  const presented = new WeakMap();
  function isNew(node, value) {
    const text = JSON.stringify(value);
    if (presented.get(node) === text) return false;
    presented.set(node, text);
    return true;
  }
  const upper = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

  function number(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    for (const [limit, scale, suffix] of [[1e9, 1e9, "G"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]])
      if (size >= limit) return Number((value / scale).toPrecision(3)) + suffix;
    if (size >= 1000) return value.toFixed(0);
    if (size !== 0 && size < 1e-4) return value.toExponential(2).replace(/\.?0+e/, "e");
    return String(Number(value.toPrecision(3)));
  }

  /* The computed colour of a variable of the style sheet: a canvas does not know variables. */
  const probe = make("span", { class: "hidden", "aria-hidden": "true" });
  document.body.append(probe);
  function ink(name, alpha = 1) {
    probe.style.color = `var(${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g);
    return `rgba(${r},${g},${b},${alpha})`;
  }

  async function ask(path) {
    if (saved) return saved[path.split("?")[0]];
    const answer = await fetch(path, { credentials: "same-origin" });
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 300));
    return answer.json();
  }
  const small = (source) => (saved ? source : source + "&small=1");

  function image(source, alt, lazy = true) {
    const node = make("img", { alt, decoding: "async", loading: lazy && !saved ? "lazy" : null });
    node.addEventListener("load", () => node.classList.toggle("pixelated", Math.max(node.naturalWidth, node.naturalHeight) <= 128));
    node.src = source;
    return node;
  }

  function facts(pairs) {
    return make("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]));
  }
  function marks(pairs) {
    return make("dl", { class: "marks" }, ...pairs.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
  }
  function scores(card) {
    const values = Object.entries(card.rewards || {});
    const found = values.some(([, value]) => value === card.total) ? values : [["total", card.total], ...values];
    if (card.advantage !== null && card.advantage !== undefined) found.push(["advantage", card.advantage]);
    return found.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => [name, number(value)]);
  }

  /* ------------------------------------------------------------------------------------------------------- data */
  class Table {
    constructor() { this.columns = { step: [] }; this.cursor = ""; }
    get length() { return this.columns.step.length; }
    merge(answer) {
      if (answer.reset) this.columns = { step: [] };
      this.cursor = answer.cursor;
      const steps = answer.columns.step || [], first = this.length === 0;
      if (first) {
        this.columns = { step: [], ...answer.columns };
        return;
      }
      const { step } = this.columns;
      let row = step.length;
      if (steps.length && steps[0] === step[row - 1]) row -= 1;
      for (const [key, values] of Object.entries(answer.columns)) {
        const column = (this.columns[key] ??= new Array(step.length).fill(null));
        values.forEach((value, i) => { if (value !== null || row + i >= column.length) column[row + i] = value; });
      }
      const count = this.columns.step.length;
      for (const column of Object.values(this.columns)) while (column.length < count) column.push(null);
    }
  }

  class Run {
    constructor(facts) {
      Object.assign(this, facts);
      this.overview = { name: facts.name, figures: [] };
      this.metrics = new Table();
      this.memory = new Table();
      this.histograms = { cursor: "", rows: [] };
      this.said = { cursor: "", rows: [] };
      this.steps = { samples: [], heldout: [] };
      this.state = {};
      this.shown = true;
      this.asked = 0;
    }
    /* Its name; where another has the same, its folder's. */
    get title() {
      const { name } = this.overview;
      return runs.some((run) => run !== this && run.overview.name === name) ? this.name : name;
    }
    at(part) { return `runs/${this.id}/${part}`; }
    async grow(part) {
      const answer = await ask(this.at(`${part}?cursor=${this[part].cursor}`));
      if (!answer) return;
      if (this[part] instanceof Table) this[part].merge(answer);
      else this[part] = { cursor: answer.cursor, rows: answer.reset ? answer.rows : this[part].rows.concat(answer.rows) };
    }
    async introduce() {
      this.overview = await ask(this.at("overview"));
      this.overview.figures ??= [];
      this.asked = performance.now();
    }
    column(key) { return this.metrics.columns[key] || this.memory.columns[key]; }
    table(key) { return this.metrics.columns[key] ? this.metrics : this.memory; }
  }
  const focus = () => runs[look.focus];
  const several = () => runs.length > 1;
  const shownRuns = () => runs.filter((run) => run.shown);

  /* ----------------------------------------------------------------------------------------------------- charts */
  function smooth(values, weight) {
    if (!weight) return values;
    let mean = 0, known = 0;
    return values.map((value) => {
      if (value === null || value === undefined) return value;
      mean = weight * mean + (1 - weight) * value;
      known = weight * known + (1 - weight);
      return mean / known;  // as if the curve had begun at its first value
    });
  }

  function axisOf(table) {
    const { columns } = table;
    if (look.axis === "step" || !runs.length) return columns.step;
    if (look.axis === "samples" && columns.samples) return columns.samples;
    if (look.axis === "time" && columns.time) return columns.time.map((value) => (value === null ? null : value / 3600));
    return columns.step;
  }
  const AXES = { step: "iteration", samples: "samples", time: "hours" };

  /* Of several runs a chart of many curves shows one. */
  const isAlone = (figure) => figure.stacked || figure.group === "alarms" || figure.curves.length > 4;

  /* What a figure draws: aligned columns, what each is, and the bands between them. */
  function content(figure) {
    const tables = [], series = [], bands = [];
    const alone = isAlone(figure), overlaid = several() && !alone;
    const chosen = alone ? [focus()] : shownRuns();
    let color = 0;
    for (const run of chosen) {
      const curves = figure.curves.filter((curve) => run.column(curve.key));
      if (!curves.length) continue;
      const x = axisOf(run.table(curves[0].key));
      const columns = [x];
      let below = null;
      curves.forEach((curve, place) => {
        const raw = run.column(curve.key);
        const tint = overlaid ? run.id % COLORS : (color++) % COLORS;
        const label = overlaid ? (curves.length > 1 ? `${run.title}: ${curve.label}` : run.title) : curve.label;
        const facts = { label, tint, dots: curve.dots, dash: overlaid && place ? [6, 4] : null, group: series.length, raw };
        let values = curve.dots || figure.stacked ? raw : smooth(raw, look.smoothing);
        if (figure.stacked) {
          const base = below;
          values = raw.map((value, i) => (base ? base[i] : 0) + (value ?? 0));
          series.push({ ...facts, area: true });
          columns.push(values);
          below = values;
          return;
        }
        const low = curve.low ? run.column(curve.low) : curve.spread ? raw.map((v, i) => bound(v, run.column(curve.spread)[i], -1)) : null;
        const high = curve.high ? run.column(curve.high) : curve.spread ? raw.map((v, i) => bound(v, run.column(curve.spread)[i], 1)) : null;
        if (low && high) {
          const at = series.length + 1;
          series.push({ ...facts, edge: true }, { ...facts, edge: true });
          columns.push(high, low);
          bands.push({ series: [at, at + 1], tint, alpha: overlaid ? 0.08 : 0.15 });
        } else if (look.smoothing && !curve.dots) {
          series.push({ ...facts, faint: true });
          columns.push(raw);
        }
        series.push(facts);
        columns.push(values);
      });
      tables.push(columns);
    }
    if (!tables.length || !tables.some((columns) => columns[0].length)) return null;
    // The drawing wants one ascending axis: rows without a place on it are left out.
    const clean = tables.map((columns) => (columns[0].includes(null) ? columns.map((c) => c.filter((_, i) => columns[0][i] !== null)) : columns));
    if (figure.stacked)
      for (let i = series.length; i > 1; i--) bands.push({ series: [i, i - 1], tint: series[i - 1].tint, area: true });
    return { data: clean.length > 1 ? uPlot.join(clean) : clean[0], series, bands };
  }
  const bound = (value, spread, sign) => (value === null || spread === null || spread === undefined ? null : value + sign * spread);

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const chart = entry.target.chart;
      chart.visible = entry.isIntersecting;
      if (chart.visible) chart.refresh();
    }
  }, { rootMargin: "200px" });
  const resized = new ResizeObserver((entries) => {
    for (const entry of entries) entry.target.chart?.resize();
  });

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.dirty = true;
      this.visible = false;
      this.hidden = new Set();
      this.plotted = make("div", { class: "plot", tabindex: "0", role: "img", "aria-label": figure.title });
      this.plotted.chart = this;
      this.plotted.addEventListener("keydown", (event) => this.step(event));
      this.now = make("span", { class: "at" });
      this.legend = make("div", { class: "legend" });
      this.node = make("figure", { class: "card chart" },
        make("div", { class: "top" }, make("h3", { text: figure.title }), this.now),
        (this.note = make("p", { class: "note", text: figure.note })), this.plotted, this.legend);
      observer.observe(this.plotted);
      resized.observe(this.plotted);
    }
    touch() {
      this.dirty = true;
      if (this.visible) this.refresh();
    }
    rebuild() {
      this.shape = null;
      this.touch();
    }
    remove() {
      observer.unobserve(this.plotted);
      resized.unobserve(this.plotted);
      this.plot?.destroy();
    }
    refresh() {
      if (!this.dirty || !this.plotted.clientWidth) return;
      this.dirty = false;
      const whose = several() && isAlone(this.figure) ? `of ${focus().title}` : "";
      this.note.textContent = [this.figure.note, whose].filter(Boolean).join("; ");
      const found = this.figure.made ? this.figure.made() : content(this.figure);
      const empty = !found || !found.data.slice(1).some((column) => column.some((value) => value !== null && value !== undefined));
      this.plotted.classList.toggle("empty", empty);
      if (empty) {
        this.plot?.destroy();
        this.plot = this.shape = null;
        this.plotted.textContent = "no finite values";
        fill(this.legend);
        return;
      }
      this.found = found;
      const shape = JSON.stringify([found.series.map(({ raw, ...rest }) => rest), found.bands, look.axis]);
      if (this.plot && shape === this.shape) {
        const { min, max } = this.plot.scales.x;
        const before = this.plot.data[0];
        const zoomed = look.zoom && this.figure.axis !== false;
        this.plot.setData(found.data, !zoomed);
        if (zoomed && before.length) this.plot.setScale("x", { min, max });
      } else this.draw(shape);
      this.describe();
    }
    draw(shape) {
      this.plot?.destroy();
      this.plotted.textContent = "";
      this.shape = shape;
      const { found, figure } = this;
      const font = '12px system-ui, sans-serif';
      const axis = { stroke: ink("--soft"), font, grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line"), size: 4 } };
      const few = (found.data[0].length <= 60);
      const series = found.series.map((each) => {
        const stroke = ink(`--c${each.tint}`, each.faint ? 0.35 : 1);
        return {
          label: each.label, show: !this.hidden.has(each.group), stroke: each.edge || each.bars ? "transparent" : stroke,
          width: each.edge ? 0 : each.faint ? 1 : each.area ? 1 : 1.8, dash: each.dots ? [4, 4] : each.dash || undefined, spanGaps: Boolean(each.dots) || figure.group === "memory",
          fill: each.bars ? ink(`--c${each.tint}`, 0.75) : each.area && each.group === 0 ? ink(`--c${each.tint}`, 0.6) : undefined,
          paths: each.bars ? uPlot.paths.bars({ size: [0.96, 100] }) : each.area ? uPlot.paths.stepped({ align: -1 }) : undefined,
          points: { show: each.edge || each.faint || each.bars ? false : each.dots || (few && !each.area) || found.data[0].length === 1, size: each.dots ? 7 : 4, fill: stroke, stroke },
        };
      });
      const rule = figure.rule;
      const options = {
        width: this.plotted.clientWidth, height: this.plotted.clientHeight,
        legend: { show: false },
        cursor: { drag: { x: true, y: false }, focus: { prox: 24 }, points: { size: 6 }, ...(figure.axis === false ? {} : { sync: { key: "runs" } }) },
        scales: {
          x: { time: false, ...(figure.range ? { range: figure.range } : {}) },
          y: { range: (_, low, high) => reach(low, high, rule, found.series.some((each) => each.area || each.bars)) },
        },
        axes: [
          { ...axis, values: (_, ticks) => ticks.map(number), size: 32, space: 56, ...(look.axis === "time" || figure.axis === false ? {} : { incrs: WHOLE }) },
          { ...axis, values: (_, ticks) => ticks.map(distinct(ticks)), size: 58, space: 34 },
        ],
        series: [{}, ...series],
        bands: found.bands.map((band) => ({ series: band.series, fill: ink(`--c${band.tint}`, band.area ? 0.6 : band.alpha) })),
        hooks: {
          setCursor: [(plot) => this.read(plot.cursor.idx)],
          setScale: [(plot, key) => { if (key === "x" && plot.status && figure.axis !== false) this.zoomed(plot); }],
          drawAxes: [(plot) => {
            if (rule === null || rule === undefined) return;
            const y = plot.valToPos(rule, "y", true), { ctx, bbox } = plot;
            ctx.save();
            ctx.strokeStyle = ink("--soft");
            ctx.setLineDash([3, 4]);
            ctx.beginPath();
            ctx.moveTo(bbox.left, y);
            ctx.lineTo(bbox.left + bbox.width, y);
            ctx.stroke();
            ctx.restore();
          }],
        },
      };
      this.plot = new uPlot(options, found.data, this.plotted);
      if (look.zoom && figure.axis !== false) this.plot.setScale("x", look.zoom);
      this.drawLegend();
    }
    zoomed(plot) {
      const { min, max } = plot.scales.x, x = plot.data[0];
      const whole = !x.length || (min <= x[0] && max >= x[x.length - 1]);
      look.zoom = whole ? null : { min, max };
    }
    drawLegend() {
      const groups = this.found.series.filter((each) => !each.edge && !each.faint);
      this.values = new Map();
      fill(this.legend, ...(this.figure.axis === false ? [] : groups).map((each) => {
        const value = make("b"), key = make("span", { class: "key" });
        key.style.setProperty("--color", `var(--c${each.tint})`);
        this.values.set(each.group, value);
        const button = make("button", { type: "button", "aria-pressed": String(!this.hidden.has(each.group)), title: "Show or hide this curve" }, key, make("span", { text: each.label }), value);
        button.addEventListener("click", () => {
          const hide = !this.hidden.has(each.group);
          hide ? this.hidden.add(each.group) : this.hidden.delete(each.group);
          button.setAttribute("aria-pressed", String(!hide));
          this.found.series.forEach((other, i) => { if (other.group === each.group) this.plot.setSeries(i + 1, { show: !hide }); });
        });
        return button;
      }));
      this.read(null);
    }
    /* Put the values at one place of the axis, or the latest ones, beside the names. */
    read(index) {
      if (!this.found || !this.values) return;
      const x = this.found.data[0];
      const live = index !== null && index !== undefined;
      this.found.series.forEach((each, i) => {
        if (each.edge || each.faint) return;
        let column = this.found.data[i + 1], at = live ? index : column.length - 1;
        if (!live || each.dots) while (at > 0 && (column[at] === null || column[at] === undefined)) at--;
        let value = column[at];
        if (each.area && i && value !== null) value -= this.found.data[i][at];
        const where = this.values.get(each.group);
        if (where) where.textContent = number(value);
      });
      if (this.figure.axis !== false) this.now.textContent = live ? `${AXES[look.axis]} ${number(x[index])}` : "";
    }
    step(event) {
      const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
      if (!(event.key in moves) || !this.plot) return;
      event.preventDefault();
      const x = this.found.data[0], last = x.length - 1;
      const jump = event.shiftKey ? Math.max(1, Math.round(last / 20)) : 1;
      this.index = Math.min(last, Math.max(0, (this.index ?? last) + moves[event.key] * jump));
      this.plot.setCursor({ left: this.plot.valToPos(x[this.index], "x"), top: this.plot.over.clientHeight / 2 });
      this.read(this.index);
      const told = [...this.legend.querySelectorAll("button")].map((button) => button.textContent.replace(/(\S)(–?[\d.]+\w*)$/, "$1 $2"));
      $("announce").textContent = `${this.now.textContent}: ${told.join(", ")}`;
    }
    describe() {
      const parts = this.found.series.flatMap((each, i) => {
        if (each.edge || each.faint) return [];
        const known = (each.raw || this.found.data[i + 1]).filter((value) => value !== null && value !== undefined);
        if (!known.length) return [];
        const [low, high] = known.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
        return [`${each.label} from ${number(known[0])} to ${number(known[known.length - 1])}, between ${number(low)} and ${number(high)}`];
      });
      this.plotted.setAttribute("aria-label", `${this.figure.title}. ${parts.slice(0, 10).join("; ")}. Arrow keys read single values.`);
      this.read(null);
    }
    resize() {
      const { clientWidth: width, clientHeight: height } = this.plotted;
      if (!width) return;
      if (this.plot && (this.plot.width !== width || this.plot.height !== height)) this.plot.setSize({ width, height });
      else if (this.dirty && this.visible) this.refresh();
    }
  }

  /* A range with air, which holds a rule, and does not make a slope of rounding. */
  function reach(low, high, rule, fromZero) {
    if (low === null || high === null) return [0, 1];
    if (rule !== null && rule !== undefined) [low, high] = [Math.min(low, rule), Math.max(high, rule)];
    if (fromZero) low = Math.min(0, low);
    if (high - low <= 1e-6 * Math.max(Math.abs(high), Math.abs(low))) {
      const air = Math.abs(high) * 0.1 || 0.5;
      return [fromZero ? Math.min(0, low) : low - air, high + air];
    }
    const air = (high - low) * 0.06;
    return [fromZero && low === 0 ? 0 : low - air, high + air];
  }
  /* Ticks with as many decimals as tell them apart. */
  function distinct(ticks) {
    const largest = Math.max(...ticks.map(Math.abs));
    if (ticks.length < 2 || largest < 1e-4 || largest >= 1e4) return (tick) => (tick === 0 ? "0" : number(Number(tick.toPrecision(3))));
    const gap = ticks[1] - ticks[0];
    let places = 0;
    while (places < 8 && Math.abs(gap * 10 ** places - Math.round(gap * 10 ** places)) > 1e-6) places++;
    return (tick) => (tick + 0).toFixed(places).replace(/^-(0\.?0*)$/, "$1");
  }

  const WHOLE = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8].flatMap((power) => [power, 2 * power, 5 * power]);
  const charts = new Map();
  const figureId = (figure) => `${figure.group}: ${figure.title}`;

  /* Charts of all shown runs, each once: curves of the same figure are put together. */
  function showFigures() {
    const wanted = new Map();
    for (const run of runs)
      for (const figure of run.overview.figures) {
        const known = wanted.get(figureId(figure));
        if (!known) wanted.set(figureId(figure), { ...figure, curves: [...figure.curves] });
        else for (const curve of figure.curves) if (!known.curves.some((each) => each.key === curve.key)) known.curves.push(curve);
      }
    for (const [id, chart] of charts)
      if (!wanted.has(id)) {
        chart.remove();
        chart.node.remove();
        charts.delete(id);
      }
    for (const group of GROUPS) {
      const place = document.querySelector(`[data-group="${group}"]`);
      let index = 0;
      for (const [id, figure] of wanted) {
        if (figure.group !== group) continue;
        let chart = charts.get(id);
        if (!chart) charts.set(id, (chart = new Chart(figure)));
        else chart.figure = figure;
        if (place.children[index] !== chart.node) place.insertBefore(chart.node, place.children[index] || null);
        index++;
      }
      place.hidden = !index;
    }
    const has = (group) => Boolean(document.querySelector(`[data-group="${group}"]`).children.length);
    $("rewards").hidden = !has("rewards");
    $("diagnostics").hidden = !has("diagnostics") && !has("others");
    $("others").hidden = !has("others");
    $("cost").hidden = !has("time") && !has("memory");
  }
  const touchCharts = () => charts.forEach((chart) => chart.touch());

  /* -------------------------------------------------------------------------------------------- words and tables */
  function table(heads, rows, facts = {}) {
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": facts.label || heads.join(", ") },
      make("table", { class: facts.class },
        facts.caption ? make("caption", { text: facts.caption }) : null,
        make("thead", {}, make("tr", {}, ...heads.map((head) => make(head ? "th" : "td", { scope: head ? "col" : null, text: head })))),
        make("tbody", {}, ...rows)));
  }
  const row = (cells, kind) => make("tr", { class: kind }, ...cells.map((cell, i) => {
    const [text, name] = Array.isArray(cell) ? cell : [cell, null];
    return i ? make("td", { text, class: name }) : make("th", { scope: "row", text });
  }));

  function showWords() {
    const run = focus(), { overview } = run;
    document.title = several() ? `flowrl: ${runs.length} runs` : overview.name;
    $("title").textContent = several() ? `${runs.length} runs` : overview.name;
    $("problem").hidden = !overview.problem;
    $("problem").textContent = overview.problem || "";
    if (isNew($("tiles"), [overview.tiles, overview.problem])) showTiles(overview);
    if (isNew($("alarms"), overview.alarms)) showAlarms(overview.alarms);
    if (isNew($("checks"), overview.checks)) showChecks(overview.checks || []);
    if (isNew($("shares"), overview.time)) showShares(overview.time || []);
    if (isNew($("evaluation"), [overview.tables, overview.manifest])) showEvaluation(overview);
    if (isNew($("setup"), [look.focus, overview.config_text, overview.facts, ...runs.map((run) => [run.title, run.overview.config])])) showSetup(overview);
  }

  function showTiles(overview) {
    fill($("tiles"), ...(overview.tiles || []).map((tile) => make("div", { class: `card tile${tile.wide ? " wide" : ""}` },
      make("div", { class: "label", text: tile.label }),
      make("div", { class: `value${tile.good === true ? " good" : tile.good === false ? " bad" : ""}`, text: tile.value + (tile.good === true ? " ✓" : tile.good === false ? " ✗" : "") }),
      tile.note ? make("div", { class: "note", text: tile.note }) : null)));
    if (!(overview.tiles || []).length) fill($("tiles"), make("p", { class: "empty", text: overview.problem ? "" : "Nothing logged yet: the first iteration has not finished." }));
  }

  function showAlarms(found) {
    $("alarms").hidden = !found;
    if (!found) return;
    const raised = found.alarms.length > 0;
    $("alarms-lead").textContent = `${found.checked} check${found.checked === 1 ? "" : "s"} for reward hacking: samples are compared with the base model's own, watched rewards and the KL with their limits. `
      + (raised ? "An alarm says that something changed that honest learning rarely changes, not that the reward is exploited: look at the samples." : "None was raised.");
    $("alarms-list").hidden = !raised;
    fill($("alarms-list"), ...found.alarms.map((alarm) => make("li", {},
      make("b", { class: alarm.raised ? "bad" : "unclear", text: alarm.when }), make("span", { text: `${upper(alarm.text)}.` }))));
    fill($("alarms-rows"), found.rows.length ? table(["statistic (median)", "of", "base model", "last", "moved"],
      found.rows.map((each) => row([each.label, each.where, each.base, each.last, [each.z, each.state]])), { label: "Statistics of samples" }) : null);
    $("alarms-rows").hidden = !found.rows.length;
  }

  function showChecks(found) {
    const outside = found.filter((each) => each.outside);
    $("checks").hidden = !found.length;
    $("checks-lead").textContent = `${found.length} numbers with a healthy range. `
      + (outside.length ? `${outside.length} ${outside.length === 1 ? "was" : "were"} outside it:` : "All have stayed inside.");
    $("checks-list").hidden = !outside.length;
    fill($("checks-list"), ...outside.map((each) => make("li", {}, make("b", { class: each.state, text: each.name }),
      make("span", { text: `${each.value} at ${each.when} (healthy: ${each.healthy}); outside ${each.outside} time${each.outside === 1 ? "" : "s"}. ${upper(each.meaning)}` }))));
    fill($("checks-rows"), table(["check", "what it looks at", "last", "healthy", "when", "outside"],
      found.map((each) => row([each.name, [each.what, "text"], [each.value, each.state], each.healthy, each.when, each.outside])), { label: "Values of all self-checks" }));
  }

  function showShares(found) {
    $("shares").hidden = !found.length;
    fill($("shares"), table(["phase", "seconds", "share"], found.map(([name, seconds, share]) => row([name, number(seconds), `${Math.round(share * 100)} %`])), { caption: "Seconds of the whole run" }));
  }

  function showEvaluation(overview) {
    const tables = overview.tables || [];
    $("evaluation").hidden = !tables.length;
    fill($("tables"), ...tables.map((each) => make("div", { class: "card" },
      table(["", "prompts", ...each.variants, ...(each.compared ? ["difference"] : [])],
        each.lines.map((line) => row([line.label, line.prompts, ...line.cells, ...(each.compared ? [[line.change.text, line.change.sign]] : [])],
          `${line.label.endsWith("overall") ? "overall" : ""}${line.last ? " last" : ""}`)), { caption: each.title, label: each.title }),
      ...each.notes.map((note) => make("p", { class: "lead", text: note })),
      each.reasons.length ? make("details", {}, make("summary", { text: "Why samples failed" }),
        table(["reason", ...each.variants], each.reasons.map(([reason, counts]) => row([reason, ...counts])))) : null)));
    const manifest = overview.manifest || [];
    $("manifest").hidden = !manifest.length;
    fill($("manifest"), make("summary", { text: "How it was evaluated" }), make("div", { class: "card" }, facts(manifest)));
  }

  function showSetup(overview) {
    $("setup").hidden = !overview.facts;
    if (!overview.facts) return;
    fill($("facts"), make("h3", { text: "Run" }), facts(overview.facts));
    const { method } = overview;
    $("method").hidden = !method;
    if (method) fill($("method"), make("h3", { text: method.name }), make("p", { class: "lead", text: method.summary + (method.summary.includes(method.paper) ? "" : ` (${method.paper})`) }), facts(method.parts));
    $("config-text").textContent = overview.config_text;
    const configs = runs.map((run) => new Map(run.overview.config || []));
    const keys = [...new Set(configs.flatMap((each) => [...each.keys()]))].filter((key) => new Set(configs.map((each) => each.get(key))).size > 1);
    $("differences").hidden = !several();
    fill($("differences"), keys.length ? table(["key", ...runs.map((run) => run.title)], keys.map((key) => row([key, ...configs.map((each) => each.get(key) ?? "–")])), { caption: "What differs between the configs" })
      : make("p", { class: "empty", text: "The configs do not differ." }));
  }

  function showLog() {
    const rows = focus().said.rows, box = $("said");
    $("log").hidden = !rows.length;
    const end = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
    if (box.run === focus() && box.count === rows.length) return;
    [box.run, box.count] = [focus(), rows.length];
    fill(box, ...rows.map((line) => make("p", { class: /^(alarm|warning|ended|error)/.test(line.text) ? "loud" : null },
      make("time", { text: String(line.time || "").replace("T", " ").replace("Z", " UTC") }), String(line.text))));
    if (end) box.scrollTop = box.scrollHeight;
  }

  /* ---------------------------------------------------------------------------------------------------- samples */
  const gallery = { kind: "samples", page: 0, cards: new Map(), shown: [], sort: null };
  const KINDS = { samples: "training", heldout: "held-out prompts" };

  async function cardsOf(run, kind, step) {
    const key = `${run.id}/${kind}/${step}`;
    if (!gallery.cards.has(key)) {
      gallery.cards.set(key, (await ask(run.at(`samples/${kind}/${step}`))) || []);
      if (gallery.cards.size > 200) gallery.cards.delete(gallery.cards.keys().next().value);
    }
    return gallery.cards.get(key);
  }
  const perPage = () => Math.max(1, Math.round((innerWidth < 700 ? 16 : 48) / Math.max(1, gallery.perStep || 16)));

  async function showSamples(fresh = false) {
    const run = focus(), kinds = Object.keys(KINDS).filter((kind) => run.steps[kind].length);
    $("samples").hidden = !kinds.length;
    if (!kinds.length) return;
    if (!kinds.includes(gallery.kind)) gallery.kind = kinds[0];
    const select = $("samples-kind");
    if (isNew(select, kinds)) fill(select, ...kinds.map((kind) => make("option", { value: kind, text: KINDS[kind] })));
    select.value = gallery.kind;
    const heldout = gallery.kind === "heldout";
    $("samples-view").parentElement.hidden = !heldout;
    const byPrompt = heldout && $("samples-view").value === "prompt";
    $("samples-lead").textContent = heldout ? "The same prompts and seeds at every evaluation while training." : "Samples that were trained on, as they were saved; not picked by score.";
    document.querySelector("#samples .pager").hidden = byPrompt;
    const steps = [...run.steps[gallery.kind]].reverse();
    const pages = Math.ceil(steps.length / perPage());
    gallery.page = Math.min(gallery.page, pages - 1);
    const range = $("samples-page");
    range.max = String(pages - 1);
    range.value = String(pages - 1 - gallery.page);
    const shown = byPrompt ? evenly(steps, 8).reverse() : steps.slice(gallery.page * perPage(), (gallery.page + 1) * perPage());
    const words = shown.length > 1 ? `${shown[shown.length - 1]} to ${shown[0]}` : `${shown[0]}`;
    $("samples-at").textContent = `${words} (${pages - gallery.page} of ${pages})`;
    range.setAttribute("aria-valuetext", `iterations ${words}`);
    $("newer").disabled = gallery.page === 0;
    $("older").disabled = gallery.page >= pages - 1;
    const what = [run.id, gallery.kind, byPrompt, ...shown].join();
    if (what === gallery.what && !fresh) return;
    gallery.what = what;
    const found = await Promise.all(shown.map((step) => cardsOf(run, gallery.kind, step)));
    if (what !== gallery.what) return;  // another page was asked for meanwhile
    const counts = Math.max(...found.map((cards) => cards.length));
    if (counts && counts !== gallery.perStep) {
      gallery.perStep = counts;
      gallery.what = null;
      return showSamples();
    }
    gallery.shown = found.flat();
    const texts = gallery.shown.some((card) => card.text !== undefined);
    showColors(gallery.shown);
    const content = $("samples-content");
    if (byPrompt) fill(content, ...histories(shown, found));
    else fill(content, ...shown.map((step, i) => make("div", { class: "moment" }, make("h3", {}, `Iteration ${step} `, make("small", { text: `${found[i].length} samples` })),
      texts ? completions(found[i], `Completions of iteration ${step}`) : make("div", { class: "shots" }, ...found[i].map((card) => shot(card, gallery.shown))))));
    if (!gallery.shown.length) fill(content, make("p", { class: "empty", text: "none of these could be read" }));
  }
  const evenly = (values, most) => (values.length <= most ? values : Array.from({ length: most }, (_, i) => values[Math.round((i * (values.length - 1)) / (most - 1))]));

  function shot(card, all, caption = true) {
    const picture = make("button", { type: "button", "aria-label": `Full size: ${card.prompt}`, onclick: () => view(all, all.indexOf(card)) }, image(small(card.image), ""));
    return make("figure", { class: "shot" }, picture, make("figcaption", {}, caption ? make("p", { class: "prompt clamp", text: card.prompt, title: card.prompt }) : null, line(card),
      marks([...scores(card), ...(card.seed === null || !caption ? [] : [["seed", shortSeed(card.seed)]])])));
  }
  const line = (card) => (card.line ? make("p", { class: "line", text: card.line }) : null);
  const shortSeed = (seed) => (seed.length > 8 ? `…${seed.slice(-6)}` : seed);

  function histories(steps, found) {
    const first = found[0] || [];
    return first.map((card) => {
      const same = found.map((cards) => cards.find((each) => each.prompt_id === card.prompt_id && each.seed === card.seed && each.prompt === card.prompt));
      const all = same.filter(Boolean);
      return make("div", { class: "moment" }, make("h3", { class: "prompt" }, card.prompt, make("small", { text: card.seed === null ? "" : `  seed ${card.seed}` })),
        make("div", { class: all[0].text === undefined ? "shots" : "grid" }, ...same.flatMap((each, i) => {
          if (!each) return [];
          const node = each.text === undefined ? shot(each, all, false) : make("div", { class: "shot" }, completion(each), marks(scores(each)));
          node.prepend(make("p", { class: "prompt", text: `iteration ${steps[i]}` }));
          return [node];
        })));
    });
  }

  /* A table of completions; a click on a head sorts by it. */
  function completions(cards, label) {
    const names = [...new Set(cards.flatMap((card) => Object.keys(card.rewards)))];
    const columns = [["prompt", (card) => card.prompt], ["completion", (card) => card.text],
      ["total", (card) => card.total], ...names.map((name) => [name, (card) => card.rewards[name]]),
      ["advantage", (card) => card.advantage], ["seed", (card) => card.seed]]
      .filter(([name, of]) => cards.some((card) => of(card) !== null && of(card) !== undefined) && !(name === "total" && names.some((reward) => cards.every((card) => card.rewards[reward] === card.total))));
    const largest = Math.max(1e-9, ...cards.map((card) => Math.abs(card.advantage || 0)));
    const body = make("tbody");
    const heads = columns.map(([name, of]) => {
      const head = make("th", { scope: "col", class: ["prompt", "completion"].includes(name) ? "text" : null }, make("button", { type: "button", text: name }));
      head.firstChild.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        order([...cards].sort((a, b) => compared(of(a), of(b)) * (down ? -1 : 1)));
      });
      return head;
    });
    const order = (sorted) => fill(body, ...sorted.map((card) => make("tr", {}, ...columns.map(([name, of]) => {
      const cell = make("td", { "data-label": name, class: name === "prompt" ? "text prompt-cell" : name === "completion" ? "text" : null });
      if (name === "completion") cell.append(completion(card, "span", "long"));
      else if (name === "prompt") cell.append(make("span", { class: "long", text: card.prompt }));
      else if (name === "seed") cell.append(make("span", { text: card.seed === null ? "–" : shortSeed(card.seed), title: card.seed }));
      else cell.append(make("span", { text: number(of(card)) }));
      if (name === "advantage" && card.advantage !== null) cell.style.background = tint(card.advantage > 0 ? "--c2" : "--c7", (0.35 * Math.abs(card.advantage)) / largest);
      return cell;
    }))));
    order(cards);
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, make("table", { class: "completions" }, make("thead", {}, make("tr", {}, ...heads)), body));
  }
  const compared = (a, b) => (typeof a === "string" ? a.localeCompare(b) : (a ?? -Infinity) - (b ?? -Infinity));
  const tint = (name, share) => `color-mix(in srgb, var(${name}) ${Math.round(100 * Math.min(1, share))}%, transparent)`;

  const TOKENS = {
    entropy: { words: "entropy", of: (tokens) => tokens.entropy, most: (values) => Math.max(0.5, ...values), unit: "nats" },
    logp: { words: "surprise (−log p of the sampler)", of: (tokens) => tokens.logp.map((value) => (value === null ? null : -value)), most: (values) => Math.max(2, ...values), unit: "nats" },
    order: { words: "decoding step (early to late)", of: (tokens) => tokens.order, most: (values) => Math.max(1, ...values), unit: "step" },
    advantage: { words: "advantage", of: (tokens, card) => tokens.advantage || tokens.text.map(() => card.advantage), most: (values) => Math.max(1e-9, ...values.map(Math.abs)), unit: "advantage", signed: true },
  };
  function showColors(cards) {
    const recorded = ["entropy", "logp", "order"].filter((key) => cards.some((card) => card.tokens?.[key]));
    const offered = recorded.length && cards.some((card) => card.advantage !== null) ? [...recorded, "advantage"] : recorded;
    $("samples-color-label").hidden = !offered.length;
    const select = $("samples-color");
    if (!isNew(select, offered)) return;
    fill(select, make("option", { value: "", text: "nothing" }), ...offered.map((key) => make("option", { value: key, text: TOKENS[key].words })));
    select.value = offered[0] || "";
  }
  function completion(card, tag = "pre", kind = "completion") {
    if (!card.text) return make("span", { class: "empty", text: "empty completion" });
    const how = TOKENS[$("samples-color").value], { tokens } = card;
    if (!how || !tokens || (how !== TOKENS.advantage && !tokens[$("samples-color").value])) return make(tag, { class: kind, text: card.text });
    const values = how.of(tokens, card), most = how.most(values.map((value) => value ?? 0));
    return make(tag, { class: kind }, ...tokens.text.map((text, i) => {
      const token = make("span", { class: "token", text: text === "" ? "␃" : text, title: `${how.unit} ${number(values[i])}` });
      const value = values[i];
      if (value !== null) token.style.background = tint(how.signed ? (value > 0 ? "--c2" : "--c7") : "--c1", (0.45 * Math.abs(value)) / most);
      return token;
    }));
  }

  /* ------------------------------------------------------------------------------------------ base against tuned */
  const compare = { found: null, of: "" };
  async function askPairs(run) {
    const found = await ask(run.at("pairs")).catch(() => null);
    if (run !== focus()) return;
    compare.found = found;
    showPairs();
  }
  function showPairs() {
    const { found } = compare;
    const there = [["evaluation", found?.evaluation], ["heldout", found?.heldout]].filter(([, each]) => each);
    $("pairs").hidden = !there.length;
    if (!there.length) return;
    const names = there.map(([key, each]) => [key, key === "heldout" ? "evaluations while training" : `flowrl eval: ${each.suite}`]);
    const select = $("pairs-of");
    if (isNew(select, names)) {
      fill(select, ...names.map(([value, text]) => make("option", { value, text })));
      select.value = names.some(([key]) => key === compare.of) ? compare.of : names[0][0];
    }
    $("pairs-of-label").hidden = names.length < 2;
    const heldout = select.value === "heldout", shown = found[select.value];
    const [before, after] = heldout ? [`iteration ${shown.first}`, `iteration ${shown.last}`] : ["base", "tuned"];
    $("pairs-lead").textContent = "Same prompts, same seeds" + (heldout ? `: the first evaluation (${before}) against the latest (${after}).` : ": the first sample of evenly spaced prompts of every tag, not picked by score.");
    $("pairs-order").parentElement.hidden = !heldout;
    const total = (card) => card.total ?? 0;
    const all = (pair) => (pair.before.line === undefined && pair.before.seed === null ? -1 : 0);
    const by = heldout ? { best: (p) => -total(p.after), worst: (p) => total(p.after), gain: (p) => total(p.before) - total(p.after) }[$("pairs-order").value] : null;
    const pairs = by ? [...shown.pairs].sort((a, b) => all(a) - all(b) || by(a) - by(b)) : shown.pairs;
    const texts = pairs.some((pair) => pair.before.text !== undefined);
    $("cut-label").hidden = texts;
    $("pairs-content").classList.toggle("texts", texts);
    fill($("pairs-content"), ...pairs.map((pair) => pairCard(pair, before, after)));
  }
  function side(card, who) {
    const verdict = card.correct === true ? make("span", { class: "good", text: "✓ correct" }) : card.correct === false ? make("span", { class: "bad", text: "✗ wrong" }) : null;
    return make("div", { class: "side" }, make("p", { class: "who" }, make("span", { text: who }), verdict), card.text === undefined ? line(card) : completion(card),
      marks(card.marks || scores(card)), card.reason ? make("p", { class: "reason", text: card.reason }) : null);
  }
  function pairCard(pair, before, after) {
    const node = make("div", { class: "card pair" }, make("h3", { text: pair.prompt }), pair.tag ? make("p", { class: "tag", text: pair.tag }) : null);
    if (pair.before.image) {
      const both = [{ ...pair.before, prompt: `${before}: ${pair.prompt}` }, { ...pair.after, prompt: `${after}: ${pair.prompt}` }];
      const over = image(small(pair.before.image), `${before}: ${pair.prompt}`), under = image(small(pair.after.image), `${after}: ${pair.prompt}`);
      over.className = "over";
      const stage = make("div", { class: "compare" }, make("button", { type: "button", "aria-label": `Full size: ${pair.prompt}`, onclick: () => view(both, 1) }, under, over));
      const cut = make("input", { type: "range", min: "0", max: "100", value: $("cut").value, "aria-label": `How much of ${before} is shown, in per cent: ${pair.prompt}` });
      const set = () => stage.style.setProperty("--cut", `${cut.value}%`);
      cut.addEventListener("input", set);
      set();
      node.append(stage, cut);
    }
    node.append(make("div", { class: "sides" }, side(pair.before, before), side(pair.after, after)));
    return node;
  }

  /* ------------------------------------------------------------------------------------------------ distributions */
  const spread = { charts: new Map(), at: null };
  function showSpread() {
    const { rows } = focus().histograms;
    $("spread").hidden = !rows.length;
    if (!rows.length) return;
    const range = $("spread-at"), last = rows.length - 1, follows = spread.at === null || spread.at >= Number(range.max);
    range.max = String(last);
    const at = follows ? last : Math.min(spread.at, last);
    range.value = String(at);
    spread.at = follows ? null : at;
    $("spread-step").textContent = `${rows[at].step}`;
    range.setAttribute("aria-valuetext", `iteration ${rows[at].step}`);
    const names = Object.keys(rows[last]).filter((key) => rows[last][key]?.counts);
    for (const name of names)
      if (!spread.charts.has(name)) {
        const figure = { title: upper(name), note: "", axis: false, curves: [], made: () => histogram(name), range: () => rangeOf(name) };
        spread.charts.set(name, new Chart(figure));
        $("spread-charts").append(spread.charts.get(name).node);
      }
    spread.charts.forEach((chart) => chart.touch());
  }
  function rangeOf(name) {
    const known = focus().histograms.rows.map((each) => each[name]).filter((each) => each?.counts.length);
    const low = Math.min(...known.map((each) => each.low)), high = Math.max(...known.map((each) => each.high));
    const air = (high - low) * 0.04 || Math.abs(high) * 0.1 || 0.5;
    return [low - air, high + air];
  }
  function histogram(name) {
    const { rows } = focus().histograms, each = rows[Number($("spread-at").value)]?.[name];
    if (!each || !each.counts.length) return null;
    const width = (each.high - each.low) / each.counts.length, chart = spread.charts.get(name);
    if (chart) chart.now.textContent = `${number(each.counts.reduce((a, b) => a + b, 0))} samples`;
    // A chart of one bar has no width of its own: empty neighbours give it one.
    const x = each.counts.map((_, i) => each.low + (i + 0.5) * width), y = [...each.counts], [low, high] = rangeOf(name);
    if (x.length === 1) return { data: [[x[0] - (high - low) / 24, x[0], x[0] + (high - low) / 24], [0, y[0], 0]], series: [{ label: "samples", tint: 0, bars: true, group: 0 }], bands: [] };
    return { data: [x, y], series: [{ label: "samples", tint: 0, bars: true, group: 0 }], bands: [] };
  }

  /* ------------------------------------------------------------------------------------------- one picture, large */
  const viewer = { cards: [], at: 0 };
  function view(cards, at) {
    [viewer.cards, viewer.at] = [cards.filter((card) => card.image), at];
    showViewed();
    if (!$("viewer").open) $("viewer").showModal();
  }
  function showViewed() {
    const card = viewer.cards[viewer.at], shown = $("viewer-image");
    $("viewer-title").textContent = card.prompt;
    shown.alt = card.prompt;
    shown.src = card.image;
    fill($("viewer-facts"), ...[...(card.marks || scores(card)), ...(card.seed ? [["seed", card.seed]] : [])].map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
    $("viewer-steps").hidden = viewer.cards.length < 2;
  }
  function turn(by) {
    viewer.at = (viewer.at + by + viewer.cards.length) % viewer.cards.length;
    showViewed();
  }

  /* ------------------------------------------------------------------------------------------- what people can do */
  function showRuns() {
    $("runs").hidden = !several();
    if (!isNew($("runs"), runs.map((run) => [run.title, run.state.running]))) return;
    fill($("chips"), ...(several() ? runs : []).map((run) => {
      const key = make("span", { class: "key" }), box = make("input", { type: "checkbox" });
      key.style.setProperty("--color", `var(--c${run.id % COLORS})`);
      box.checked = run.shown;
      box.addEventListener("change", () => {
        run.shown = box.checked;
        touchCharts();
      });
      return make("li", {}, make("label", {}, box, key, make("span", { text: run.title })), make("span", { class: "path", text: `${run.path}${run.state.running ? ", training" : ""}` }));
    }));
    $("focus-label").hidden = !several();
    fill($("focus"), ...runs.map((run) => make("option", { value: run.id, text: run.title })));
    $("focus").value = String(look.focus);
  }
  function showStatus(lost) {
    const { state, overview } = focus(), status = $("status");
    status.className = lost ? "lost" : state.running ? "running" : "";
    const text = lost ? "not connected: the page's server has ended, or the tunnel to it; trying again"
      : saved ? `saved ${saved.written}` : state.running ? `training, ${state.writer}` : overview.problem ? "waiting" : "not training";
    if (status.textContent !== text) status.textContent = text;
    $("stop").hidden = Boolean(saved) || !state.stoppable || Boolean(lost);
  }
  function showSections() {
    const open = [...document.querySelectorAll("main > section")].filter((section) => !section.hidden);
    const names = open.map((section) => section.id).join();
    if (!isNew($("sections"), names)) return;
    fill($("sections"), ...open.map((section) => make("li", {}, make("a", { href: `#${section.id}`, text: section.querySelector("h2").textContent }))));
  }

  async function stopRun() {
    const run = focus();
    $("asking").showModal();
    await new Promise((closed) => $("asking").addEventListener("close", closed, { once: true }));
    if ($("asking").returnValue !== "yes") return;
    $("stop").disabled = true;
    try {
      const answer = await fetch(run.at("stop"), { method: "POST", credentials: "same-origin", headers: { "X-Flowrl-Token": token } });
      const text = await answer.text();
      $("announce").textContent = $("status").textContent = answer.ok ? JSON.parse(text).said : text;
    } finally {
      setTimeout(() => { $("stop").disabled = false; }, 5000);
    }
  }

  function setTheme(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    $("theme").textContent = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[theme];
    $("theme").dataset.theme = theme;
    try { localStorage.setItem("flowrl-theme", theme); } catch { /* a saved file may have no storage */ }
    repaint();
  }
  function repaint() {
    charts.forEach((chart) => chart.rebuild());
    spread.charts.forEach((chart) => chart.rebuild());
  }
  let redraw = 0;
  function later(what) {
    cancelAnimationFrame(redraw);
    redraw = requestAnimationFrame(what);
  }

  function listen() {
    let chosen = "auto";
    try { chosen = localStorage.getItem("flowrl-theme") || "auto"; } catch { /* as above */ }
    setTheme(["light", "dark"].includes(chosen) ? chosen : "auto");
    $("theme").addEventListener("click", () => setTheme({ auto: "light", light: "dark", dark: "auto" }[$("theme").dataset.theme]));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    $("stop").addEventListener("click", stopRun);
    $("focus").addEventListener("change", async () => {
      look.focus = Number($("focus").value);
      Object.assign(gallery, { page: 0, what: null });
      spread.at = null;
      showAll();
      await askPairs(focus());
      showSections();
    });
    $("smoothing").addEventListener("input", () => {
      look.smoothing = Number($("smoothing").value);
      $("smoothing-value").textContent = look.smoothing ? look.smoothing.toFixed(2) : "none";
      later(touchCharts);
    });
    $("axis").addEventListener("change", () => {
      [look.axis, look.zoom] = [$("axis").value, null];
      touchCharts();
    });
    $("unzoom").addEventListener("click", () => {
      look.zoom = null;
      charts.forEach((chart) => chart.rebuild());
    });
    $("samples-kind").addEventListener("change", () => {
      Object.assign(gallery, { kind: $("samples-kind").value, page: 0 });
      showSamples();
    });
    $("samples-view").addEventListener("change", () => showSamples());
    $("samples-color").addEventListener("change", () => {
      showSamples(true);
      showPairs();
    });
    const turnPage = (page) => {
      gallery.page = page;
      showSamples();
    };
    $("newer").addEventListener("click", () => turnPage(gallery.page - 1));
    $("older").addEventListener("click", () => turnPage(gallery.page + 1));
    $("samples-page").addEventListener("input", () => turnPage(Number($("samples-page").max) - Number($("samples-page").value)));
    $("pairs-of").addEventListener("change", () => {
      compare.of = $("pairs-of").value;
      showPairs();
    });
    $("pairs-order").addEventListener("change", showPairs);
    $("cut").addEventListener("input", () => document.querySelectorAll(".pair input[type=range]").forEach((cut) => {
      cut.value = $("cut").value;
      cut.dispatchEvent(new Event("input"));
    }));
    $("spread-at").addEventListener("input", () => {
      spread.at = Number($("spread-at").value);
      showSpread();
    });
    $("viewer-before").addEventListener("click", () => turn(-1));
    $("viewer-after").addEventListener("click", () => turn(1));
    $("viewer").addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") turn(event.key === "ArrowLeft" ? -1 : 1);
    });
    $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
    $("viewer-image").addEventListener("load", () => $("viewer-image").classList.toggle("pixelated", Math.max($("viewer-image").naturalWidth, $("viewer-image").naturalHeight) <= 128));
    document.querySelectorAll("details").forEach((each) => each.addEventListener("toggle", () => each.querySelectorAll(".plot").forEach((plot) => plot.chart?.resize())));
  }

  /* ------------------------------------------------------------------------------------------------------ the flow */
  function showAll() {
    showRuns();
    showStatus();
    showFigures();
    showWords();
    showLog();
    showSpread();
    touchCharts();
    showSamples().catch(tell);
    showSections();
  }
  const tell = (error) => { $("announce").textContent = $("status").textContent = error.message; };

  /* Ask for what is new of a run; one round at a time, and another if something came meanwhile. */
  async function refresh(run) {
    if (run.busy) {
      run.again = true;
      return;
    }
    run.busy = true;
    try {
      do {
        run.again = false;
        const first = !run.asked;
        if (first || performance.now() - run.asked > OVERVIEW_MS) {
          await run.introduce();
          if (first) showAll();
        }
        const evaluations = run.steps.heldout.length;
        const here = (show) => () => { if (run === focus()) show(); };
        await Promise.all([
          run.grow("metrics").then(touchCharts), run.grow("memory").then(touchCharts),
          run.grow("histograms").then(here(showSpread)), run.grow("said").then(here(showLog)),
          ask(run.at("steps")).then(async (steps) => {
            run.steps = steps || run.steps;
            if (run !== focus()) return;
            await showSamples();
            if (!first && run.steps.heldout.length === evaluations && run.evaluated === run.overview.tables?.length) return;
            run.evaluated = run.overview.tables?.length;
            await askPairs(run);
          }),
        ]);
        showSections();
      } while (run.again);
      if (performance.now() - run.asked < OVERVIEW_MS && !saved) {
        clearTimeout(run.timer);
        run.timer = setTimeout(async () => {
          await run.introduce();
          showAll();
        }, OVERVIEW_MS);
      }
    } catch (error) {
      tell(error);
    } finally {
      run.busy = false;
    }
  }

  function follow() {
    const stream = new EventSource("events");
    stream.onmessage = (event) => {
      JSON.parse(event.data).forEach((state, i) => {
        const run = runs[i], fresh = state.mark !== run.state.mark;
        run.state = state;
        if (fresh) refresh(run);
      });
      showRuns();
      showStatus();
    };
    stream.onerror = () => showStatus(true);
  }

  async function begin() {
    listen();
    const answer = await ask("runs");
    token = answer.token || "";
    for (const facts of answer.runs || answer) runs.push(new Run(facts));
    showRuns();
    if (saved) await refresh(runs[0]);
    else follow();
    $("footer").textContent = saved ? "Written by flowrl from this run's directory. The file is self-contained." : "Served by flowrl from the runs' directories, to this machine alone.";
    document.documentElement.dataset.ready = "yes";
  }
  begin().catch(tell);
})();
