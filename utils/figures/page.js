"use strict";
// Everything from data reaches the page as text (textContent, attributes), never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const channels = new Map(data.channels.map((channel) => [channel.code, channel]));
const byId = (id) => document.getElementById(id);
const theme = () => document.documentElement.dataset.theme;
const colourOf = (code) => channels.get(code)[theme()];
const percent = (share) => (share === null ? "–" : d3.format(share < 0.0995 ? ".1%" : ".0%")(share));
const signed = (change) => (change === null ? "–" : d3.format("+.1f")(100 * change));
const SHARE = 0, LOW = 1, HIGH = 2, NULL = 3, TOKENS = 4, FAINT = 5; // of a curve
const CHANGE = 0, CHANGE_LOW = 1, CHANGE_HIGH = 2, Q = 3; // of a change

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function bdi(text) {
  return element("bdi", {}, text);
}

// --- theme --------------------------------------------------------------------------------------------------

const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;

function setTheme() {
  document.documentElement.dataset.theme = chosenTheme || (prefersDark.matches ? "dark" : "light");
  byId("theme").setAttribute("aria-pressed", String(theme() === "dark"));
}

function redraw() {
  drawSwitches();
  drawFigures();
  if (hasGrids) drawGrid();
}

// --- which languages are on ---------------------------------------------------------------------------------

const atFirst = [...new Set(Object.values(data.shown).flat())];
let listed = [...atFirst]; // channels that have a switch
let on = new Set(atFirst);
let everywhere = new Set(); // drawn in every figure, since a reader asked for them; others where they matter

function lineSample(code, width = 30) {
  const channel = channels.get(code);
  const svg = d3.create("svg").attr("width", width).attr("height", 12).attr("aria-hidden", "true");
  svg.append("line").attr("x2", width).attr("y1", 6).attr("y2", 6).attr("stroke", colourOf(code))
    .attr("stroke-width", 2.5).attr("stroke-dasharray", channel.dash || null);
  if (channel.marker) svg.append("path").attr("transform", `translate(${width / 2},6)`).attr("d", marker(channel, 40)).attr("fill", colourOf(code));
  return svg.node();
}

function marker(channel, size) {
  const kind = "symbol" + channel.marker[0].toUpperCase() + channel.marker.slice(1);
  return d3.symbol().type(d3[kind]).size(size)();
}

function drawSwitches() {
  const focused = document.activeElement && document.activeElement.dataset.channel;
  byId("switches").replaceChildren(...listed.map((code) => {
    const button = element("button", { type: "button", "data-channel": code, "aria-pressed": String(on.has(code)) }, lineSample(code), bdi(channels.get(code).name));
    button.addEventListener("click", () => {
      on.has(code) ? on.delete(code) : on.add(code);
      drawSwitches();
      drawFigures();
    });
    for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => highlight(code));
    for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => highlight(null));
    return button;
  }));
  if (focused) [...byId("switches").children].find((button) => button.dataset.channel === focused)?.focus();
  const rest = data.channels.filter((channel) => !listed.includes(channel.code));
  byId("more").replaceChildren(element("option", { value: "" }, "…"), ...rest.map((channel) => element("option", { value: channel.code }, channel.name)));
}

function highlight(code) {
  byId("figures").classList.toggle("hushed", code !== null && on.has(code));
  for (const path of byId("figures").querySelectorAll("path[data-channel]")) path.classList.toggle("loud", path.dataset.channel === code);
}

function switchTo(codes) {
  on = new Set(codes);
  drawSwitches();
  drawFigures();
}

// --- the figures --------------------------------------------------------------------------------------------

function panels() {
  const found = [];
  for (const lang of data.langs) {
    data.runs.forEach((run, i) => found.push({ lang, kind: "share", run: i, name: data.runs.length > 1 ? run.name : "" }));
    if (data.changes) found.push({ lang, kind: "change", run: 0, name: "change" });
  }
  return found;
}

function title(lang) {
  return data.prefix + lang.name;
}

function curvesOf(panel) {
  const curves = panel.kind === "change" ? data.changes[panel.lang.code] : data.curves[panel.run][panel.lang.code].channels;
  return listed.filter((code) => on.has(code) && curves[code] && (everywhere.has(code) || data.shown[panel.lang.code].includes(code)))
    .map((code) => ({ code, numbers: curves[code] }));
}

function extent(kind) {
  const numbers = panels().filter((panel) => panel.kind === kind).flatMap((panel) => curvesOf(panel).flatMap((curve) => [...curve.numbers[0], ...curve.numbers[1], ...curve.numbers[2]]));
  return d3.extent(numbers.filter((number) => number !== null));
}

function drawFigures() {
  const focused = document.activeElement && document.activeElement.dataset.panel;
  hideTip();
  const most = extent("share")[1] || 1;
  const [least, highest] = extent("change");
  const far = Math.max(0.01, Math.abs(least || 0), highest || 0);
  const domains = { share: [0, Math.min(1, most * 1.02)], change: [-far, far] };
  byId("figures").classList.toggle("pair", data.runs.length > 1);
  // A figure's width is known once it is on the page.
  const made = panels().map((panel, i) => {
    const figure = element("figure", { "data-lang": panel.lang.code, "data-kind": panel.name || "share" });
    const n = data.curves[panel.run][panel.lang.code].n;
    figure.append(element("figcaption", {}, title(panel.lang), element("span", {}, ` ${panel.name ? panel.name + ", " : ""}n = ${n}`)));
    return { panel, i, figure };
  });
  const open = new Set([...byId("figures").querySelectorAll("details[open]")].map((details) => details.dataset.panel));
  byId("figures").replaceChildren(...made.map(({ figure }) => figure));
  const width = Math.max(made[0].figure.clientWidth, 200);
  for (const { panel, i, figure } of made) {
    const curves = curvesOf(panel);
    figure.append(drawPanel(panel, i, curves, domains[panel.kind], width), numbersOf(panel, i, curves, open.has(String(i))));
  }
  if (focused) byId("figures").querySelector(`svg[data-panel="${focused}"]`)?.focus();
}

function drawPanel(panel, i, curves, domain, width) {
  const height = Math.round(Math.min(Math.max(width * 0.6, 170), 300));
  const margin = { left: 44, right: 10, top: 8, bottom: 40 };
  const x = d3.scaleLinear().domain(d3.extent(data.layers)).range([margin.left, width - margin.right]);
  const y = d3.scaleLinear().domain(domain).range([height - margin.bottom, margin.top]);
  const svg = d3.create("svg").attr("width", width).attr("height", height).attr("data-panel", i).attr("tabindex", 0).attr("role", "slider")
    .attr("aria-label", `${title(panel.lang)}${panel.name ? ", " + panel.name : ""}: by layer`)
    .attr("aria-valuemin", data.layers[0]).attr("aria-valuemax", data.layers[data.layers.length - 1]);
  const ticks = Math.min(data.layers.length - 1, Math.floor(width / 45));
  svg.append("g").attr("transform", `translate(0,${height - margin.bottom})`).call(d3.axisBottom(x).ticks(ticks).tickFormat(d3.format("d")));
  const format = panel.kind === "change" ? d3.format("+.0%") : d3.format(".0%");
  svg.append("g").attr("transform", `translate(${margin.left},0)`).call(d3.axisLeft(y).ticks(5).tickFormat(format));
  svg.append("text").attr("x", (margin.left + width) / 2).attr("y", height - 6).attr("text-anchor", "middle").text("layer");
  if (panel.kind === "change") svg.append("line").attr("class", "cursor").attr("x1", x.range()[0]).attr("x2", x.range()[1]).attr("y1", y(0)).attr("y2", y(0));
  for (const curve of [...curves].reverse()) drawCurve(svg, panel, curve, x, y);
  const cursor = svg.append("line").attr("class", "cursor").attr("y1", y.range()[0]).attr("y2", y.range()[1]).attr("visibility", "hidden");
  let layer = data.layers[data.layers.length - 1];
  const node = svg.node();
  const show = (chosen, at) => {
    layer = chosen;
    cursor.attr("x1", x(layer)).attr("x2", x(layer)).attr("visibility", "visible");
    const rows = readOut(panel, curves, data.layers.indexOf(layer));
    node.setAttribute("aria-valuenow", layer);
    node.setAttribute("aria-valuetext", `layer ${layer}: ${rows.slice(0, 6).map((row) => `${row.name} ${row.number}`).join(", ") || "nothing"}`);
    showTip(`${title(panel.lang)}, layer ${layer}`, rows, at);
  };
  const hide = () => { cursor.attr("visibility", "hidden"); hideTip(); };
  const beside = () => { const box = node.getBoundingClientRect(); return [box.left + x(layer), box.top + 10]; };
  node.addEventListener("pointermove", (event) => {
    const nearest = x.invert(event.clientX - node.getBoundingClientRect().left);
    show(data.layers.reduce((a, b) => (Math.abs(b - nearest) < Math.abs(a - nearest) ? b : a)), [event.clientX, event.clientY]);
  });
  node.addEventListener("pointerleave", hide);
  node.addEventListener("blur", hide);
  node.addEventListener("focus", () => { if (node.matches(":focus-visible")) show(layer, beside()); });
  node.addEventListener("keydown", (event) => {
    const at = data.layers.indexOf(layer), last = data.layers.length - 1;
    const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    layer = data.layers[Math.min(Math.max(to, 0), last)];
    show(layer, beside());
  });
  return node;
}

function drawCurve(svg, panel, { code, numbers }, x, y) {
  const channel = channels.get(code), colour = colourOf(code);
  const points = data.layers.map((layer, i) => ({ layer, i }));
  const isShare = panel.kind === "share";
  const value = (i) => numbers[0][i];
  const add = (kind, d) => svg.append("path").attr("class", `${kind}${isShare && numbers[FAINT] ? " faint" : ""}`).attr("data-channel", code).attr("d", d);
  const area = d3.area().defined((p) => numbers[1][p.i] !== null).x((p) => x(p.layer)).y0((p) => y(numbers[1][p.i])).y1((p) => y(numbers[2][p.i]));
  add("band", area(points)).attr("fill", colour);
  const line = (column) => d3.line().defined((p) => numbers[column][p.i] !== null).x((p) => x(p.layer)).y((p) => y(numbers[column][p.i]))(points);
  if (isShare) add("null", line(NULL)).attr("stroke", colour);
  add(`line${code === panel.lang.code ? " own" : ""}`, line(0)).attr("stroke", colour).attr("stroke-dasharray", channel.dash || null);
  const place = (p) => `translate(${x(p.layer)},${y(value(p.i))})`;
  const every = Math.max(1, Math.floor(points.length / 8));
  if (channel.marker) for (const p of points.filter((p) => p.i % every === 0)) add("mark", marker(channel, 36)).attr("transform", place(p)).attr("fill", colour);
  if (isShare) for (const p of points.filter((p) => numbers[TOKENS][p.i] < data.fewest_tokens && value(p.i) > 0.01)) add("few", "M-3,-3L3,3M-3,3L3,-3").attr("transform", place(p)).attr("stroke", colour).attr("stroke-width", 1.5);
  else for (const p of points.filter((p) => numbers[Q] && numbers[Q][p.i] !== null && numbers[Q][p.i] <= data.rate)) add("found", d3.symbol().size(22)()).attr("transform", place(p)).attr("fill", colour);
}

// The numbers of a layer, the largest first.
function readOut(panel, curves, i) {
  const rows = curves.map(({ code, numbers }) => {
    const [name, value, low, high] = [channels.get(code).name, numbers[0][i], numbers[1][i], numbers[2][i]];
    const write = panel.kind === "change" ? signed : percent;
    const few = panel.kind === "share" && numbers[TOKENS][i] < data.fewest_tokens ? " ×" : "";
    const beside = panel.kind === "change" ? (numbers[Q][i] === null ? "" : `q ${d3.format(".2~g")(numbers[Q][i])}`) : `null ${percent(numbers[NULL][i])}`;
    return { code, name, value, number: write(value) + few, interval: low === null ? "" : `${write(low)} to ${write(high)}`, beside };
  });
  return rows.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
}

function showTip(heading, rows, [left, top]) {
  const tip = byId("tip");
  const table = element("table", {}, ...rows.map((row) => element("tr", {}, element("td", {}, lineSample(row.code, 22)), element("td", {}, bdi(row.name)),
    element("td", { class: "number" }, row.number), element("td", { class: "number" }, row.interval), element("td", { class: "number" }, row.beside))));
  tip.replaceChildren(element("strong", {}, heading), table);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const right = left + 16 + box.width > window.innerWidth ? left - 16 - box.width : left + 16;
  tip.style.left = `${Math.max(4, Math.min(right, window.innerWidth - box.width - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(top + 12, window.innerHeight - box.height - 4))}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

// The same numbers as a table, for who can't see a figure or wants to copy them; filled when it is opened.
function numbersOf(panel, i, curves, open) {
  const details = element("details", { "data-panel": i }, element("summary", {}, "Numbers"));
  const fill = () => {
    if (!details.open || details.querySelector("table")) return;
    const write = panel.kind === "change" ? signed : percent;
    const head = element("tr", {}, element("th", { scope: "col" }, "layer"), ...curves.map(({ code }) => element("th", { scope: "col" }, bdi(channels.get(code).name))));
    const rows = data.layers.map((layer, at) => element("tr", {}, element("th", { scope: "row" }, String(layer)), ...curves.map(({ numbers }) => element("td", {}, write(numbers[0][at])))));
    details.append(element("div", {}, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows))));
  };
  details.addEventListener("toggle", fill);
  details.open = open;
  return details;
}

// --- a prompt at a time -------------------------------------------------------------------------------------

const hasGrids = data.grids.some((grid) => grid);
const state = { run: Math.max(0, data.grids.findIndex((grid) => grid)), prompt: 0, layer: null, position: null };

function typed(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Kind(bytes.buffer);
}

const arrays = data.grids.map((grid) => grid && {
  tokens: typed(grid.tokens, grid.wide ? Uint32Array : Uint16Array), probs: typed(grid.probs, Uint16Array),
  leading: typed(grid.leading, Uint16Array), shares: typed(grid.shares, Uint16Array),
});

// What is kept of a cell: [[token, probability]], [[channel, share]].
function cellOf(run, cell, layer) {
  const { shape: [, layers, nTokens], n_shares, words, channels: codes } = data.grids[run];
  const at = cell * layers + layer;
  const tokens = d3.range(nTokens).map((k) => [words[arrays[run].tokens[at * nTokens + k]], arrays[run].probs[at * nTokens + k] / 65535]);
  const shares = d3.range(n_shares).map((k) => [codes[arrays[run].leading[at * n_shares + k]], arrays[run].shares[at * n_shares + k] / 65535]);
  return { tokens, shares };
}

function mixed(code, share) {
  const ground = getComputedStyle(document.documentElement).getPropertyValue("--ground").trim();
  return d3.rgb(d3.interpolateRgb(ground, colourOf(code))(Math.min(1, share)));
}

function luminance(colour) {
  const [r, g, b] = [colour.r, colour.g, colour.b].map((part) => (part / 255 <= 0.03928 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Background, ink and underline of a cell; stripes where a channel that is no language leads.
function paint(node, code, share) {
  const channel = channels.get(code), colour = mixed(code, share);
  const ground = mixed(code, 0);
  const stripe = channel.other ? mixed(code, share * 0.8) : colour;
  node.style.background = channel.other ? `repeating-linear-gradient(135deg, ${colour} 0 3px, ${stripe} 3px 7px)` : String(colour);
  // The ink that stands out more, where it does so least (relative luminance, WCAG 2).
  const [darker, lighter] = [luminance(colour), luminance(stripe)].sort((a, b) => a - b);
  node.style.color = (darker + 0.05) / 0.05 > 1.05 / (lighter + 0.05) ? "#000000" : "#ffffff";
  node.style.borderBottomStyle = channel.underline;
  node.style.borderBottomColor = share > 0.05 ? colourOf(code) : String(ground);
}

function promptsShown() {
  const { value: lang } = byId("lang"), { value: outcome } = byId("outcome");
  return data.grids[state.run].prompts.map((prompt, i) => ({ prompt, i }))
    .filter(({ prompt }) => (!lang || prompt.lang === lang) && (!outcome || prompt.outcome === outcome));
}

function nameOf(lang) {
  const found = data.langs.find((other) => other.code === lang);
  return found ? found.name : lang;
}

function options(select, pairs, value) {
  select.replaceChildren(...pairs.map(([key, text]) => element("option", { value: key }, text)));
  select.value = value;
}

function chooseRun() {
  const { prompts, left_out: leftOut } = data.grids[state.run];
  byId("left-out").textContent = leftOut ? `${leftOut} more in grid.npz: they would make the page too large.` : "";
  const [langs, outcomes] = ["lang", "outcome"].map((key) => [...new Set(prompts.map((prompt) => prompt[key]).filter((found) => found))]);
  const lang = byId("lang").value, outcome = byId("outcome").value;
  options(byId("lang"), [["", "all"], ...langs.map((code) => [code, nameOf(code)])], langs.includes(lang) ? lang : "");
  options(byId("outcome"), [["", "all"], ...outcomes.map((name) => [name, name.replace("_", " ")])], outcomes.includes(outcome) ? outcome : "");
  byId("of-outcome").hidden = outcomes.length === 0;
  choosePrompts();
}

function choosePrompts(wanted = state.prompt) {
  const shown = promptsShown();
  state.prompt = shown.some(({ i }) => i === wanted) ? wanted : shown.length ? shown[0].i : null;
  options(byId("prompt"), shown.map(({ prompt, i }) => [i, `${prompt.id} (${nameOf(prompt.lang)}${prompt.outcome ? ", " + prompt.outcome.replace("_", " ") : ""})`]), state.prompt);
  state.layer = state.position = null;
  drawGrid();
}

function drawGrid() {
  const table = byId("grid"), prompt = data.grids[state.run].prompts[state.prompt];
  for (const id of ["text", "leaders", "scroll", "cell"]) byId(id).hidden = !prompt;
  if (!prompt) return;
  const { words } = data.grids[state.run];
  const text = byId("text");
  text.textContent = prompt.text;
  text.dir = table.dir = prompt.direction;
  channels.has(prompt.lang) ? text.setAttribute("lang", prompt.lang.replace("_", "-")) : text.removeAttribute("lang");
  const header = element("tr", {}, element("th", { scope: "col" }, "layer"), ...prompt.tokens.map((token, position) =>
    element("th", { scope: "col", class: prompt.read.includes(position) ? "read" : "" }, element("small", {}, String(position + 1)), bdi(words[token]))));
  const leaders = new Map();
  const rows = [...data.layers].reverse().map((layer) => {
    const at = data.layers.indexOf(layer);
    const cells = prompt.cells.map((cell, position) => {
      const { tokens: [[token]], shares: [[code, share]] } = cellOf(state.run, cell, at);
      leaders.set(code, (leaders.get(code) || 0) + 1);
      const node = element("td", { role: "gridcell", tabindex: -1, "data-layer": layer, "data-position": position }, bdi(token), element("small", {}, channels.get(code).sign));
      paint(node, code, share);
      return node;
    });
    return element("tr", {}, element("th", { scope: "row" }, String(layer)), ...cells);
  });
  table.replaceChildren(element("thead", {}, header), element("tbody", {}, ...rows));
  byId("leaders").replaceChildren(...[...leaders].sort((a, b) => b[1] - a[1]).slice(0, 14).map(([code]) => {
    const swatch = element("span", { class: "swatch" }, channels.get(code).sign);
    paint(swatch, code, 1);
    return element("span", {}, swatch, bdi(channels.get(code).name));
  }));
  if (state.position === null) {
    state.layer = data.layers[data.layers.length - 1];
    state.position = prompt.tokens.length - 1;
    byId("scroll").scrollLeft = (prompt.direction === "rtl" ? -1 : 1) * byId("scroll").scrollWidth;
  }
  choose(state.layer, state.position, false);
}

function choose(layer, position, focus) {
  const table = byId("grid");
  table.querySelector("td.chosen")?.classList.remove("chosen");
  for (const node of table.querySelectorAll('td[tabindex="0"]')) node.tabIndex = -1;
  const node = table.querySelector(`td[data-layer="${layer}"][data-position="${position}"]`);
  [state.layer, state.position] = [layer, position];
  node.classList.add("chosen");
  node.tabIndex = 0;
  describe(layer, position);
  node.setAttribute("aria-label", byId("cell").dataset.summary);
  if (focus) node.focus({ preventScroll: true });
  if (focus) node.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function bar(text, number, width, colour) {
  const fill = element("span", { class: "bar", "aria-hidden": "true" });
  fill.style.width = `${Math.round(100 * Math.min(1, width))}%`;
  if (colour) fill.style.background = colour;
  return element("li", {}, fill, bdi(text), element("b", {}, number));
}

function describe(layer, position) {
  const prompt = data.grids[state.run].prompts[state.prompt], words = data.grids[state.run].words;
  const at = data.layers.indexOf(layer);
  const sides = data.grids.map((grid, run) => {
    const same = grid && (run === state.run ? prompt : grid.prompts.find((other) => other.id === prompt.id && other.lang === prompt.lang && other.text === prompt.text));
    return same && { name: data.runs[run].name, ...cellOf(run, same.cells[position], at) };
  }).filter((side) => side);
  const [token, share] = [words[prompt.tokens[position]], cellOf(state.run, prompt.cells[position], at)];
  const parts = sides.map((side) => element("div", {}, ...(sides.length > 1 ? [element("h4", {}, side.name)] : []),
    element("h4", {}, "likeliest tokens"), element("ol", {}, ...side.tokens.map(([word, prob]) => bar(word, percent(prob), prob))),
    element("h4", {}, "shares"), element("ol", {}, ...side.shares.filter(([, part]) => part >= 0.0005).map(([code, part]) => bar(channels.get(code).name, percent(part), part, colourOf(code))))));
  const summary = `layer ${layer}, position ${position + 1} of ${prompt.tokens.length}, after ${token}: ${share.tokens[0][0]} ${percent(share.tokens[0][1])}, ${channels.get(share.shares[0][0]).name} ${percent(share.shares[0][1])}`;
  byId("cell").dataset.summary = summary;
  byId("cell").replaceChildren(element("h3", {}, `Layer ${layer}, after `, bdi(token), ` (${position + 1} of ${prompt.tokens.length})`),
    element("div", { class: sides.length > 1 ? "pair" : "" }, ...parts));
}

function moveInGrid(event) {
  const prompt = data.grids[state.run].prompts[state.prompt];
  const forward = prompt.direction === "rtl" ? -1 : 1, last = data.layers.length - 1;
  let at = data.layers.indexOf(state.layer), position = state.position;
  const move = {
    ArrowRight: () => (position += forward), ArrowLeft: () => (position -= forward), ArrowUp: () => (at += 1), ArrowDown: () => (at -= 1),
    Home: () => (position = 0), End: () => (position = prompt.tokens.length - 1), PageUp: () => (at = last), PageDown: () => (at = 0),
  }[event.key];
  if (!move) return;
  event.preventDefault();
  move();
  choose(data.layers[Math.min(Math.max(at, 0), last)], Math.min(Math.max(position, 0), prompt.tokens.length - 1), true);
}

function step(by) {
  const shown = promptsShown().map(({ i }) => i), at = shown.indexOf(state.prompt);
  if (shown.length) choosePrompts(shown[(at + by + shown.length) % shown.length]);
}

// --- start --------------------------------------------------------------------------------------------------

document.querySelector("h1").textContent = data.title;
byId("about").replaceChildren(...data.runs.map((run) => element("p", {}, data.runs.length > 1 ? `${run.name}: ${run.about}` : run.about)));
byId("fewest").textContent = data.fewest_tokens;
byId("of-changes").hidden = !data.changes;
byId("rate").textContent = d3.format(".0%")(data.rate);
byId("theme").addEventListener("click", () => {
  chosenTheme = theme() === "dark" ? "light" : "dark";
  setTheme();
  redraw();
});
prefersDark.addEventListener("change", () => { setTheme(); redraw(); });
byId("all").addEventListener("click", () => switchTo(listed));
byId("none").addEventListener("click", () => switchTo([]));
byId("reset").addEventListener("click", () => { listed = [...atFirst]; everywhere = new Set(); switchTo(atFirst); });
byId("more").addEventListener("change", (event) => {
  const code = event.target.value;
  if (!code) return;
  listed.push(code);
  everywhere.add(code);
  switchTo([...on, code]);
});
let drawnWidth = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === drawnWidth) return; // a phone's address bar comes and goes
  drawnWidth = window.innerWidth;
  drawFigures();
});
setTheme();
drawSwitches();
drawFigures();
if (hasGrids) {
  byId("prompts").hidden = false;
  byId("of-run").hidden = data.grids.filter((grid) => grid).length < 2;
  options(byId("run"), data.runs.map((run, i) => [i, run.name]).filter(([i]) => data.grids[i]), state.run);
  byId("run").addEventListener("change", (event) => { state.run = Number(event.target.value); chooseRun(); });
  for (const id of ["lang", "outcome"]) byId(id).addEventListener("change", () => choosePrompts());
  byId("prompt").addEventListener("change", (event) => choosePrompts(Number(event.target.value)));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("grid").addEventListener("keydown", moveInGrid);
  byId("grid").addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    if (cell) choose(Number(cell.dataset.layer), Number(cell.dataset.position), false);
  });
  byId("grid").addEventListener("focusin", (event) => {
    const cell = event.target.closest("td");
    if (cell) choose(Number(cell.dataset.layer), Number(cell.dataset.position), false);
  });
  chooseRun();
}
