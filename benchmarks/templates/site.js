"use strict";
// Draws the table and the curves from the JSON in the page. All text is set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows.map((values, order) => {
    const row = { order };
    data.columns.forEach((name, i) => { row[name] = values[i]; });
    row.words = values.filter((value) => typeof value === "string").join(" ").toLowerCase();
    return row;
  });
  const $ = (id) => document.getElementById(id);
  const PAGE = 100;
  const MOST = 12;
  const SVG = "http://www.w3.org/2000/svg";
  const NAMES = {
    model: "Model", training: "Training", task: "Task", dataset: "Data set", threat: "Threat", attack: "Attack", budget: "Budget",
    clean: "Clean", adversarial: "Under attack", lost: "Lost", above_blind: "Above image-blind", success_rate: "Success",
    flags: "Flags", run: "Run", kind: "Kind", n_cases: "Cases", n_unscored: "Unscored", ci_low: "CI low", ci_high: "CI high",
    train_seed: "Seed", eps_fraction: "Share of window", l2_rms: "RMS change", linf: "Largest change", seed: "Attack seed", ssim: "SSIM",
  };
  const numeric = new Set(data.columns.filter((name) => rows.some((row) => typeof row[name] === "number")
    && rows.every((row) => row[name] === null || typeof row[name] === "number")));
  const shown = new Set(["model", "training", "task", "threat", "budget", "clean", "adversarial", "lost", "above_blind", "flags"]);
  // shown where the rows on the page differ in them
  const DIFFERING = ["attack", "region", "train_seed", "run"];
  const chosen = new Map();
  const title = (name) => NAMES[name] || (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll("_", " ");
  const order = [...new Set([...shown, "attack", "success_rate", "dataset", "run", ...data.columns])].filter((n) => data.columns.includes(n));
  order.splice(order.indexOf("attack"), 1);
  order.splice(order.indexOf("threat") + 1, 0, "attack");
  for (const [name, after] of [["region", "threat"], ["train_seed", "training"]]) {
    order.splice(order.indexOf(name), 1);
    order.splice(order.indexOf(after) + 1, 0, name);
  }
  const filters = [...document.querySelectorAll("[data-filter]")];
  const state = { sort: null, way: 1, page: 0, text: "" };
  const compare = new Intl.Collator("en", { numeric: true }).compare;

  function make(tag, options = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(options)) {
      if (name === "text") element.textContent = value;
      else if (name === "class") element.className = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function draw(tag, options = {}, text = "") {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(options)) element.setAttribute(name, value);
    if (text) element.textContent = text;
    return element;
  }

  const score = (value) => (value === null ? "not scored" : value.toFixed(3));
  const distinct = (list, name) => [...new Set(list.map((row) => row[name]))];
  const size = (row) => (row.threat === "linf" && row.eps_fraction !== null ? row.eps_fraction * 255 : row.eps);

  // ---- filters -------------------------------------------------------------------------------------------------
  const ALL = "";
  function fillFilters() {
    for (const select of filters) {
      const name = select.dataset.filter;
      let values = distinct(rows, name).filter((value) => value !== null);
      if (name === "budget") {
        const least = new Map();
        for (const row of rows) if (!least.has(row.budget) || size(row) < least.get(row.budget)) least.set(row.budget, size(row));
        values.sort((a, b) => (least.get(a) ?? 1e9) - (least.get(b) ?? 1e9));
      } else values.sort(compare);
      if (["training", "model", "threat"].includes(name)) values = values.filter((value) => value !== "none" && value !== "image-blind");
      select.append(new Option(name === "kind" ? "all rows" : "all", ALL), ...values.map((value) => new Option(value, value)));
      const least = name === "kind" || name === "budget" ? 1 : 2;
      if (values.length < least) select.closest("label").hidden = true;
    }
    const kind = filters.find((select) => select.dataset.filter === "kind");
    if ([...kind.options].some((option) => option.value === "worst case")) kind.value = "worst case";
  }

  function passes(row, names) {
    for (const select of filters) {
      const name = select.dataset.filter;
      if (select.value === ALL || !names.includes(name)) continue;
      // a constant diagnosis has no model, training or threat; it stays beside those it is measured against
      if (row.kind === "image-blind" && ["model", "training", "threat"].includes(name)) continue;
      if (row.kind === "clean" && name === "threat") continue;
      if (row[name] !== select.value) return false;
    }
    return true;
  }
  const CONTEXT = ["task", "dataset", "model", "training", "threat", "run"];
  const found = (row) => state.text.split(/\s+/).every((word) => row.words.includes(word));

  // ---- table ---------------------------------------------------------------------------------------------------
  function selected() {
    const list = rows.filter((row) => passes(row, [...CONTEXT, "kind", "budget"]) && found(row));
    if (state.sort === null) return list;
    const name = state.sort;
    const before = name === "budget" ? (a, b) => (size(a) ?? 1e9) - (size(b) ?? 1e9) : numeric.has(name) ? (a, b) => a[name] - b[name]
      : (a, b) => compare(a[name], b[name]);
    return list.sort((a, b) => {
      // what is missing comes last, either way
      if (a[name] === null || b[name] === null) return (a[name] === null) - (b[name] === null) || a.order - b.order;
      return state.way * before(a, b) || a.order - b.order;
    });
  }

  function columnsOf(list) {
    return order.filter((name) => chosen.get(name) ?? (shown.has(name)
      || (DIFFERING.includes(name) && distinct(list, name).filter((value) => value !== null).length > 1)));
  }

  function header(columns) {
    const line = make("tr", { role: "row" });
    for (const name of columns) {
      const button = make("button", { type: "button", text: title(name) });
      button.addEventListener("click", () => sortBy(name));
      const cell = make("th", { scope: "col", role: "columnheader", class: numeric.has(name) ? "number" : "", "data-column": name }, button);
      if (state.sort === name) cell.setAttribute("aria-sort", state.way === 1 ? "ascending" : "descending");
      line.append(cell);
    }
    const held = document.activeElement && document.activeElement.closest("#table th");
    $("table").tHead.replaceChildren(line);
    if (held) line.querySelector(`[data-column="${held.dataset.column}"] button`)?.focus();
  }

  function sortBy(name) {
    if (state.sort === name) state.way = -state.way;
    else { state.sort = name; state.way = numeric.has(name) && name !== "budget" ? -1 : 1; }
    state.page = 0;
    table();
    remember();
  }

  function cellOf(row, name) {
    const value = row[name];
    const cell = make(name === "model" ? "th" : "td", {
      "data-label": title(name), role: name === "model" ? "rowheader" : "cell", class: numeric.has(name) ? "number" : "" });
    if (name === "model") cell.setAttribute("scope", "row");
    if (name === "adversarial") {
      cell.classList.add("wide-cell");
      cell.append(score(value));
      if (value !== null && row.ci_low !== null) {
        const range = make("span", { class: "range", title: `95 % interval ${score(row.ci_low)} to ${score(row.ci_high)}, by ${row.ci_unit}` });
        const band = make("i"), mark = make("b");
        band.style.left = `${100 * row.ci_low}%`;
        band.style.right = `${100 * (1 - row.ci_high)}%`;
        mark.style.left = `${100 * value}%`;
        range.append(band, mark);
        cell.append(range);
      }
    } else if (name === "flags") {
      cell.classList.add("wide-cell", "flags");
      for (const flag of (value || "").split(";").filter(Boolean)) cell.append(make("span", { class: "flag", text: flag }));
      if (row.n_unscored) cell.append(make("span", { class: "flag", text: `${row.n_unscored}/${row.n_cases} unscored` }));
    } else if (name === "model" && row.kind === "image-blind") cell.append("image-blind");
    else if (value === null) { cell.append(name === "clean" ? "not scored" : "–"); cell.classList.add("quiet"); }
    else if (name === "lost") cell.append(score(value));
    else if (name === "above_blind") {
      cell.append((value > 0 ? "+" : "") + score(value).replace("-", "−"));
      if (value <= 0) cell.classList.add("below");
    }
    else if (["clean", "ci_low", "ci_high", "success_rate", "ssim"].includes(name)) cell.append(score(value));
    else cell.append(typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));
    return cell;
  }

  function table() {
    const list = selected();
    const pages = Math.max(1, Math.ceil(list.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const from = state.page * PAGE;
    const columns = columnsOf(list);
    header(columns);
    for (const box of document.querySelectorAll("#choose input")) box.checked = columns.includes(box.value);
    const lines = list.slice(from, from + PAGE).map((row) => make("tr", { role: "row" }, ...columns.map((name) => cellOf(row, name))));
    if (!lines.length) lines.push(make("tr", { role: "row" }, make("td", { role: "cell", class: "none wide-cell", colspan: columns.length, text: "No row fits these filters." })));
    $("table").tBodies[0].replaceChildren(...lines);
    $("count").textContent = `${list.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
    document.querySelector(".pager").hidden = pages === 1;
    $("where").textContent = `${from + 1} to ${Math.min(from + PAGE, list.length)} of ${list.length.toLocaleString("en")}`;
    $("back").disabled = state.page === 0;
    $("on").disabled = state.page === pages - 1;
    $("sort-by").value = state.sort ?? "";
    $("sort-order").value = String(state.way);
  }

  // ---- curves --------------------------------------------------------------------------------------------------
  const WIDTH = 460, HEIGHT = 250, LEFT = 34, RIGHT = 12, TOP = 10, BOTTOM = 34;
  const high = (value) => TOP + (1 - value) * (HEIGHT - TOP - BOTTOM);

  function panels() {
    const visible = rows.filter((row) => passes(row, CONTEXT) && (row.kind !== "worst case" || found(row)));
    const groups = grouped(visible.filter((row) => row.kind === "worst case"), panelOf);
    const made = [...groups.values()].map((group) => panel(group, visible)).filter(Boolean);
    $("panels").replaceChildren(...(made.length ? made : [make("p", { class: "none", text: "No worst case fits these filters." })]));
  }

  function pointsOf(list) {
    const at = new Map();
    for (const row of list) {
      if (row.adversarial === null) continue;
      const x = row.kind === "clean" ? 0 : size(row) ?? 0;
      if (!at.has(x)) at.set(x, []);
      at.get(x).push(row);
    }
    // several training seeds: their mean, in the widest of their intervals
    return [...at].sort((a, b) => a[0] - b[0]).map(([x, same]) => ({
      x, y: same.reduce((sum, row) => sum + row.adversarial, 0) / same.length, label: same[0].budget, seeds: same.length,
      low: Math.min(...same.map((row) => row.ci_low ?? row.adversarial)), high: Math.max(...same.map((row) => row.ci_high ?? row.adversarial)),
    }));
  }

  const keyOf = (row) => [row.run, row.model, row.training].join("\u001f");
  const panelOf = (row) => [row.task, row.dataset, row.threat, row.region].join("\u001f");
  // names and colours are those among all rows, so that a filter changes neither
  const members = new Map();
  for (const row of rows) {
    if (row.kind !== "worst case") continue;
    if (!members.has(panelOf(row))) members.set(panelOf(row), { models: new Set(), trainings: new Set(), runs: new Set(), known: new Map() });
    const panel = members.get(panelOf(row));
    if (!panel.known.has(keyOf(row))) panel.known.set(keyOf(row), panel.known.size);
    panel.models.add(row.model); panel.trainings.add(row.training); panel.runs.add(row.run);
  }

  function grouped(list, key) {
    const groups = new Map();
    for (const row of list) {
      if (!groups.has(key(row))) groups.set(key(row), []);
      groups.get(key(row)).push(row);
    }
    return groups;
  }

  function seriesOf(group, visible) {
    const first = group[0];
    const panel = members.get(panelOf(first));
    const beside = grouped(visible.filter((row) => row.task === first.task && row.dataset === first.dataset), keyOf);
    return [...grouped(group, keyOf)].map(([key, worst]) => {
      const own = beside.get(key) ?? [];
      const name = [panel.models.size > 1 || panel.trainings.size === 1 ? worst[0].model : "", worst[0].training,
        panel.runs.size > 1 ? `(${worst[0].run})` : ""].filter(Boolean).join(" ");
      const clean = own.filter((row) => row.kind === "clean");
      return {
        name, colour: `var(--s${panel.known.get(key) % 8})`, curve: pointsOf([...clean, ...worst]),
        noise: pointsOf([...clean, ...own.filter((row) => row.kind === "noise" && row.threat === first.threat && row.region === first.region)]),
      };
    }).filter((one) => one.curve.length);
  }

  function panel(group, visible) {
    const first = group[0];
    const all = seriesOf(group, visible);
    if (!all.length) return null;
    const last = (one) => one.curve[one.curve.length - 1];
    const series = all.length <= MOST ? all : [...all].sort((a, b) => last(b).x - last(a).x || last(b).y - last(a).y).slice(0, MOST);
    // against a reference that an attack moves, a constant mask has no score
    const fair = group.some((row) => row.above_blind !== null);
    const blind = fair && visible.find((row) => row.kind === "image-blind" && row.task === first.task && row.dataset === first.dataset);
    const ticks = new Map();
    for (const one of series) for (const point of one.curve) ticks.set(point.x, point.label);
    const xs = [...ticks.keys()].sort((a, b) => a - b);
    const most = Math.max(...xs, 1e-12);
    const across = (x) => LEFT + (x / most) * (WIDTH - LEFT - RIGHT);
    const place = first.region === "all" ? "" : `, ${first.region}`;
    const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
      "aria-label": `${first.task}: ${first.metric} against budget, threat ${first.threat}${place}; the numbers are in the table below` });
    for (const y of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: high(y), y2: high(y) }));
      svg.append(draw("text", { x: LEFT - 6, y: high(y) + 4, "text-anchor": "end" }, y === 0 || y === 1 ? String(y) : y.toFixed(2)));
    }
    let before = -100;
    for (const x of xs) {
      if (across(x) - before < 42 && x !== most) continue;
      before = across(x);
      svg.append(draw("text", { x: before, y: HEIGHT - BOTTOM + 16, "text-anchor": x === most && x ? "end" : "middle" }, x ? ticks.get(x) : "0"));
    }
    svg.append(draw("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, `budget (${first.threat}${place})`));
    if (blind && blind.adversarial !== null) svg.append(draw("line", { class: "blind", x1: LEFT, x2: WIDTH - RIGHT, y1: high(blind.adversarial), y2: high(blind.adversarial) }));
    const lines = series.map((one) => {
      const line = draw("g", { class: "series" });
      const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${across(p.x).toFixed(1)} ${high(p.y).toFixed(1)}`).join("");
      const band = [...one.curve.map((p) => `${across(p.x)},${high(p.high)}`), ...[...one.curve].reverse().map((p) => `${across(p.x)},${high(p.low)}`)];
      line.append(draw("polygon", { class: "band", points: band.join(" "), style: `fill:${one.colour}` }));
      if (one.noise.length > 1) line.append(draw("path", { class: "noise", d: path(one.noise), style: `stroke:${one.colour}` }));
      line.append(draw("path", { class: "curve", d: path(one.curve), style: `stroke:${one.colour}` }));
      for (const p of one.curve) {
        const dot = draw("circle", { cx: across(p.x), cy: high(p.y), r: 3.6, style: `fill:${one.colour}` });
        dot.append(draw("title", {}, `${one.name}, ${p.label}: ${score(p.y)} (${score(p.low)} to ${score(p.high)})${p.seeds > 1 ? `, mean of ${p.seeds} rows` : ""}`));
        line.append(dot);
      }
      svg.append(line);
      return line;
    });
    const box = make("article", { class: "panel" }, make("h3", { text: first.task }),
      make("p", { class: "about", text: `${first.metric}, ${first.n_cases} cases of ${first.dataset}, ${first.threat}${place}` }), svg);
    if (all.length > MOST) box.append(make("p", { class: "about", text: `${MOST} of ${all.length} models: those that score highest at the largest budget. Filters choose others.` }));
    box.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Scores on ${first.task}, ${first.threat}${place}` }, smallTable(xs, ticks, series, lines, blind, box)));
    return box;
  }

  function smallTable(xs, ticks, series, lines, blind, box) {
    const budgets = xs.length > 6 ? xs.filter((x, i) => i === 0 || i >= xs.length - 5) : xs;
    const head = make("tr", {}, make("th", { scope: "col", text: "model" }), ...budgets.map((x) => make("th", { scope: "col", text: ticks.get(x) })));
    const list = series.map((one, i) => {
      const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = one.colour;
      const line = make("tr", {}, make("th", { scope: "row" }, swatch, one.name));
      for (const x of budgets) {
        const point = one.curve.find((p) => p.x === x);
        const cell = make("td", { text: point ? score(point.y) : "–" });
        if (point) cell.style.setProperty("--heat", `${100 * point.y}%`);
        const others = series.map((other) => other.curve.find((p) => p.x === x)?.y ?? -1);
        if (point && series.length > 1 && point.y === Math.max(...others)) cell.className = "best";
        line.append(cell);
      }
      const light = (on) => { box.classList.toggle("some", on); lines[i].classList.toggle("lit", on); };
      line.addEventListener("mouseenter", () => light(true));
      line.addEventListener("mouseleave", () => light(false));
      return line;
    });
    if (blind) list.push(make("tr", { class: "quiet" }, make("th", { scope: "row", text: "image-blind" }), ...budgets.map(() => make("td", { text: score(blind.adversarial) }))));
    return make("table", { class: "small" }, make("thead", {}, head), make("tbody", {}, ...list));
  }

  // ---- pictures, state, events -----------------------------------------------------------------------------------
  function pictures() {
    for (const figure of document.querySelectorAll("figure[data-task]")) {
      figure.hidden = filters.some((select) => ["task", "run"].includes(select.dataset.filter) && select.value !== ALL
        && figure.dataset[select.dataset.filter] !== select.value);
    }
  }

  function remember() {
    const words = new URLSearchParams();
    for (const select of filters) words.set(select.dataset.filter, select.value);
    if (state.text) words.set("text", state.text);
    if (state.sort !== null) words.set("sort", `${state.way === 1 ? "" : "-"}${state.sort}`);
    try { history.replaceState(null, "", `#${words}`); } catch { /* a page without an address keeps nothing */ }
  }

  function recall() {
    if (!location.hash.includes("=")) return;
    const words = new URLSearchParams(location.hash.slice(1));
    for (const select of filters) {
      const value = words.get(select.dataset.filter);
      if (value !== null && [...select.options].some((option) => option.value === value)) select.value = value;
    }
    $("text").value = words.get("text") ?? "";
    const sort = words.get("sort") ?? "";
    if (data.columns.includes(sort.replace(/^-/, ""))) { state.sort = sort.replace(/^-/, ""); state.way = sort.startsWith("-") ? -1 : 1; }
  }

  function show() {
    state.text = $("text").value.trim().toLowerCase();
    for (const select of filters) select.classList.toggle("set", select.value !== ALL);
    table();
    panels();
    pictures();
  }

  function changed() {
    state.page = 0;
    show();
    remember();
  }

  function listen() {
    for (const select of filters) select.addEventListener("change", changed);
    let waiting = 0;
    $("text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(changed, 120); });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("filters").addEventListener("reset", () => setTimeout(() => {
      for (const select of filters) select.value = ALL;
      state.sort = null;
      changed();
    }));
    const turn = (by) => { state.page += by; table(); $("count").scrollIntoView({ block: "nearest" }); };
    $("back").addEventListener("click", () => turn(-1));
    $("on").addEventListener("click", () => turn(1));
    $("sort-by").addEventListener("change", () => { state.sort = $("sort-by").value || null; state.page = 0; table(); remember(); });
    $("sort-order").addEventListener("change", () => { state.way = Number($("sort-order").value); state.page = 0; table(); remember(); });
    for (const button of document.querySelectorAll(".zoom")) button.addEventListener("click", () => {
      const image = $("large").querySelector("img");
      image.src = button.firstElementChild.src;
      image.alt = button.firstElementChild.alt;
      $("large").showModal();
    });
    $("close").addEventListener("click", () => $("large").close());
    $("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
    addEventListener("keydown", (event) => { if (event.key === "Escape") document.querySelector(".columns").open = false; });
    addEventListener("click", (event) => { if (!event.target.closest(".columns")) document.querySelector(".columns").open = false; });
  }

  function theme(name) {
    document.documentElement.dataset.theme = name;
    $("theme").textContent = name === "dark" ? "Light" : "Dark";
  }

  function choices() {
    for (const name of order) {
      const box = make("input", { type: "checkbox", value: name });
      box.disabled = name === "model";
      box.addEventListener("change", () => { chosen.set(name, box.checked); table(); });
      $("choose").append(make("label", {}, box, title(name)));
      $("sort-by").append(new Option(title(name), name));
    }
    $("sort-by").prepend(new Option("order of the file", ""));
  }

  fillFilters();
  choices();
  recall();
  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  listen();
  for (const id of ["filters", "curves", "results", "theme"]) $(id).hidden = false;
  show();
})();
