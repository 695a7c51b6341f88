"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const element = id => document.getElementById(id);
const hues = ["#2166ac", "#b2182b", "#1b7837", "#7b3294", "#b35806", "#01665e", "#c51b7d", "#4d4d4d", "#8c6d31", "#3288bd"];
const dashes = ["", "6 3", "2 2", "8 3 2 3", "1 3"];
function made(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "path", "circle", "text", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// The table. What has no number stays at the end, whichever way the rows are sorted.
const head = document.querySelectorAll("#sheet thead th"), body = document.querySelector("#sheet tbody");
head.forEach((th, column) => th.firstChild.addEventListener("click", () => {
  const best = th.firstChild.dataset.best, isText = best === "", old = th.getAttribute("aria-sort");
  const descends = old ? old === "ascending" : best === "highest";
  head.forEach(other => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", descends ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.value;
  const [known, unknown] = [[], []];
  for (const row of body.rows) (key(row) === "" ? unknown : known).push(row);
  known.sort((a, b) => (isText ? key(a).localeCompare(key(b)) : key(a) - key(b)) * (descends ? -1 : 1));
  body.append(...known, ...unknown);
}));

// Plots: a frame with round ticks, and functions from numbers to its pixels.
function ticks(low, high) {
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => power * factor >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at++) found.push(at * step);
  return found.map(value => [value, String(+value.toPrecision(6))]);
}
function framed(xs, ys, xTitle, yTitle, title) {
  const [width, height, left, right, top, bottom] = [innerWidth < 500 ? 370 : 480, 300, 46, 14, 24, 44];
  const x = v => left + (v - xs[0]) / (xs[1] - xs[0]) * (width - left - right);
  const y = v => height - bottom - (v - ys[0]) / (ys[1] - ys[0]) * (height - top - bottom);
  const svg = made("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title});
  const grey = {stroke: "#e4e7ec"}, axis = {stroke: "#1d2430"};
  for (const [v, label] of ticks(...xs)) svg.append(made("line", {x1: x(v), x2: x(v), y1: top, y2: height - bottom, ...grey}),
    made("text", {x: x(v), y: height - bottom + 16, "text-anchor": "middle"}, label));
  for (const [v, label] of ticks(...ys)) svg.append(made("line", {x1: left, x2: width - right, y1: y(v), y2: y(v), ...grey}),
    made("text", {x: left - 6, y: y(v) + 4, "text-anchor": "end"}, label));
  svg.append(made("line", {x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, ...axis}),
    made("line", {x1: left, x2: left, y1: top, y2: height - bottom, ...axis}),
    made("text", {x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle"}, xTitle),
    made("text", {x: 2, y: 13}, yTitle));
  return {svg, x, y};
}
const breakable = text => text.split(/(?<=_)/).flatMap(piece => [piece, made("wbr")]);
const padded = values => {
  const [low, high] = [Math.min(...values), Math.max(...values)], room = 0.08 * (high - low) || 0.05;
  return [low - room, high + room];
};

function drawScatter() {
  const points = data.rows.map((row, place) => ({...row, number: place + 1})).filter(row => row.score !== null);
  element("scatter-section").hidden = !points.length;
  if (!points.length) return;
  const models = [...new Set(data.rows.map(row => row.model))];
  const hue = row => row.kind === "control" ? "#98a2b3" : hues[models.indexOf(row.model) % hues.length];
  const {svg, x, y} = framed(padded(points.map(p => p.score)), padded(points.map(p => 100 * p.accuracy)),
    data.front.title, "top-1 (%) ↑", `accuracy against ${data.front.title}`);
  const at = p => [x(p.score), y(100 * p.accuracy)];
  const front = points.filter(p => p.isOnFront).sort((a, b) => a.accuracy - b.accuracy);
  svg.append(made("path", {d: "M" + (front.length ? front.map(at).join("L") : "0 0"), fill: "none", stroke: "#98a2b3", "stroke-dasharray": "4 3"}));
  const labels = [];  // points that lie close together share one
  for (const p of points.sort((a, b) => a.score - b.score)) {
    const [px, py] = at(p);
    svg.append(made("circle", {cx: px, cy: py, r: p.isOnFront ? 6 : 4.5, fill: p.isOnFront ? hue(p) : "#fff", stroke: hue(p), "stroke-width": 1.8},
      made("title", {}, `${p.number}: ${p.model}, ${p.method}`)));
    const near = labels.find(label => Math.abs(label.x - px) < 6 + 3.5 * `${label.numbers.join(", ")}${p.number}`.length && Math.abs(label.y - py) < 12);
    if (near) near.numbers.push(p.number), near.to = px; else labels.push({x: px, to: px, y: py, numbers: [p.number]});
  }
  for (const label of labels)
    svg.append(made("text", {x: (label.x + label.to) / 2, y: label.y - 9, "text-anchor": "middle"}, label.numbers.sort((a, b) => a - b).join(", ")));
  element("scatter").append(svg);
  element("scatter-legend").append(...models.map((model, place) => made("li", {},
    made("svg", {viewBox: "0 0 26 10"}, made("circle", {cx: 13, cy: 5, r: 4.5, fill: hues[place % hues.length]})), model)));
}

function drawCurves() {
  const [kind, name] = JSON.parse(element("curves-of").value);
  const rows = data.rows.filter(row => row[kind] === name && Object.keys(row.curves).length);
  const label = row => kind === "model" ? row.method : row.model;
  const pen = place => ({fill: "none", stroke: hues[place % hues.length], "stroke-width": 1.8, "stroke-dasharray": dashes[place % dashes.length]});
  element("curves").replaceChildren(...data.curves.map(metric => {
    const own = rows.map(row => row.curves[metric.name]);
    const all = own.flat().filter(value => value !== undefined && value !== null);
    const {svg, x, y} = framed([0, 100], [Math.min(0, ...all), Math.max(...all) * 1.05 || 1], "steps (%)", `${metric.title}: ${data.output} of the class`, metric.title);
    own.forEach((curve, place) => curve && svg.append(made("path",
      {d: "M" + curve.map((v, k) => [x(100 * k / (curve.length - 1)), y(v)].map(n => n.toFixed(1))).join("L"), ...pen(place)},
      made("title", {}, label(rows[place])))));
    return made("figure", {}, svg);
  }));
  element("curves-legend").replaceChildren(...rows.map((row, place) => made("li", {},
    made("svg", {viewBox: "0 0 26 10"}, made("path", {d: "M0 5H26", ...pen(place)})), label(row))));
}
if (data.curves.length) {
  for (const [kind, title] of [["model", "all maps of"], ["method", "all models, map:"]]) {
    const names = [...new Set(data.rows.map(row => row[kind]))];
    element("curves-of").append(...names.map(name => made("option", {value: JSON.stringify([kind, name])}, `${title} ${name}`)));
  }
  element("curves-of").addEventListener("change", drawCurves);
  drawCurves();
} else element("curves-section").hidden = true;
drawScatter();

// The browser of images. Every map is drawn here, from its cells, over the picture turned grey.
const cells = data.maps.map(map => Int8Array.from(atob(map.cells), letter => letter.charCodeAt(0)));
const unit = map => `${map.method}, in ${map.unit}`;
const chosen = {image: 0, class: 0};
const limits = new Map();
for (const name of new Set(data.maps.map(unit))) {  // a few maps that are far stronger than all others would leave these without colour
  const peaks = data.maps.filter(map => unit(map) === name).flatMap(map => map.peaks.flat()).sort((a, b) => a - b);
  limits.set(name, peaks[Math.floor(0.95 * (peaks.length - 1))] || 1);
}

async function pixels(source) {  // small pictures are enlarged, so that an outline is a thin line
  const image = new Image();
  image.src = source;
  await image.decode();
  const factor = Math.max(1, Math.round(192 / Math.max(image.width, image.height)));
  const [width, height] = [factor * image.width, factor * image.height];
  const context = made("canvas", {width, height}).getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}
async function opened(view) {  // decoded once
  if (view.grey) return;
  const {data: rgb, width, height} = await pixels(view.picture);
  const mask = view.mask ? (await pixels(view.mask)).data : null;
  const inside = (x, y) => mask[4 * (y * width + x)] > 127;
  view.edge = new Uint8Array(width * height);
  if (mask) for (let y = 0; y < height; y++) for (let x = 0; x < width; x++)
    view.edge[y * width + x] = inside(x, y) && (x < 1 || y < 1 || x > width - 2 || y > height - 2 ||
      !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1)));
  Object.assign(view, {width, height, rgb, grey: Float32Array.from({length: width * height},
    (_, p) => 89 + 0.65 * (0.299 * rgb[4 * p] + 0.587 * rgb[4 * p + 1] + 0.114 * rgb[4 * p + 2]))});
}
function places(cells, pixels) {  // of each pixel: the cell to its left, the one to its right, the share of the latter
  return Array.from({length: pixels}, (_, p) => {
    const at = Math.min(Math.max((p + 0.5) * cells / pixels - 0.5, 0), cells - 1), left = Math.floor(at);
    return [left, Math.min(left + 1, cells - 1), at - left];
  });
}
function drawn(view, colour) {
  const canvas = made("canvas", {width: view.width, height: view.height}), context = canvas.getContext("2d");
  const picture = context.createImageData(view.width, view.height), out = picture.data, marks = element("outline").checked;
  for (let p = 0, y = 0; y < view.height; y++) for (let x = 0; x < view.width; x++, p++) {
    const rgb = marks && view.edge[p] ? [255, 212, 0] : colour(x, y, p);
    out.set([rgb[0], rgb[1], rgb[2], 255], 4 * p);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}
function tinted(grey, value) {  // strong hues, thinned out: a map far below the scale's limit is still seen
  const hue = value > 0 ? [178, 24, 43] : [33, 102, 172], opacity = 0.9 * Math.min(Math.abs(value), 1) ** 0.75;
  return hue.map(channel => grey * (1 - opacity) + channel * opacity);
}
function drawnMap(view, own, height, width, factor) {  // factor: from int8 to a share of the colours' limit
  const rows = places(height, view.height), columns = places(width, view.width);
  return drawn(view, (x, y, p) => {
    const [top, low, down] = rows[y], [left, right, across] = columns[x];
    const upper = own[top * width + left] * (1 - across) + own[top * width + right] * across;
    const lower = own[low * width + left] * (1 - across) + own[low * width + right] * across;
    return tinted(view.grey[p], (upper * (1 - down) + lower * down) * factor);
  });
}
const shades = Array.from({length: 33}, (_, k) => tinted(225, k / 16 - 1));
const percent = share => `${(100 * share).toFixed(1)} %`;
const rounded = value => String(+value.toPrecision(3));

let drawing = 0;
async function show() {
  const turn = ++drawing, image = data.images[chosen.image], scale = element("scale").value;
  await Promise.all(image.views.map(opened));
  if (turn !== drawing) return;  // another choice was made meanwhile
  const k = chosen.class, content = [];
  content.push(made("h3", {}, "image"), made("div", {class: "maps"}, ...image.views.map((view, place) => {
    const whose = data.models.filter(model => model.view === place).map(model => model.name).join(", ");
    const source = image.views.length > 1 ? `as seen by ${whose}; ` : "";
    return made("figure", {}, drawn(view, (x, y, p) => view.rgb.subarray(4 * p, 4 * p + 3)),
      made("figcaption", {}, ...breakable(`${source}${image.id}, label: ${data.classes[image.label]}`)));
  })));
  for (const name of limits.keys()) {
    const here = data.maps.map((map, place) => ({...map, place, peak: map.peaks[chosen.image][k]})).filter(map => unit(map) === name);
    const limit = scale === "page" ? limits.get(name) : Math.max(0, ...here.map(map => map.peak));
    const bar = made("span", {class: "bar", style: `background: linear-gradient(90deg, ${shades.map(c => `rgb(${c})`)})`});
    const range = scale === "map" ? ["each map by its own scale"] : [`−${rounded(limit)}`, bar, rounded(limit) + (scale === "page" ? " and beyond" : "")];
    content.push(made("h3", {}, `${name} `, made("span", {class: "soft small"}, ...range)), made("div", {class: "maps"}, ...here.map(map => {
      const size = map.height * map.width, start = (chosen.image * image.classes.length + k) * size;
      const full = (scale === "map" ? map.peak : limit) || 1, model = data.models[map.model];
      const told = `${model.name}: ${percent(image.probabilities[map.model][k])}` + (scale === "map" && map.peak !== null ? `, ±${rounded(map.peak)}` : "");
      const caption = made("figcaption", {}, ...breakable(map.peak === null ? `${told}; not finite` : told));
      const canvas = drawnMap(image.views[model.view], cells[map.place].subarray(start, start + size), map.height, map.width, (map.peak ?? 0) / 127 / full);
      Object.assign(canvas.dataset, {model: model.name, method: map.method});
      return made("figure", {}, canvas, caption);
    })));
  }
  element("maps").replaceChildren(...content);
  element("browser").dataset.shown = `${chosen.image},${k},${scale}`;
}
function offerClasses() {
  const image = data.images[chosen.image];
  element("class").replaceChildren(...image.classes.map((number, k) => {
    const by = data.models.filter((_, m) => image.predicted[m] === number).map(model => model.name);
    const notes = [...(number === image.label ? ["label"] : []), ...(by.length ? [`predicted by ${by.length > 1 ? `${by.length} of ${data.models.length} models` : by[0]}`] : [])];
    return made("option", {value: k}, data.classes[number] + (notes.length ? ` (${notes.join("; ")})` : ""));
  }));
  element("class").value = chosen.class;
  document.querySelectorAll("#images button").forEach((button, place) => button.setAttribute("aria-pressed", place === chosen.image));
}
function choose(image, k, scale = element("scale").value) {
  chosen.image = Math.min(Math.max(image || 0, 0), data.images.length - 1);
  chosen.class = Math.min(Math.max(k || 0, 0), data.images[chosen.image].classes.length - 1);
  if (["page", "view", "map"].includes(scale)) element("scale").value = scale;
  offerClasses();
  history.replaceState(null, "", `#image=${chosen.image}&class=${chosen.class}&scale=${element("scale").value}`);
  return show();
}
function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  return choose(+asked.get("image"), +asked.get("class"), asked.get("scale") ?? undefined);
}
if (data.images.length) {
  element("images").append(...data.images.map((image, place) => {
    const name = `image ${place + 1}: ${data.classes[image.label]}`;
    const button = made("button", {type: "button", title: name, "aria-label": name}, made("img", {alt: "", src: image.views[0].picture}));
    button.addEventListener("click", () => choose(place, 0));
    return button;
  }));
  element("class").addEventListener("change", event => choose(chosen.image, +event.target.value));
  for (const id of ["scale", "outline"]) element(id).addEventListener("change", () => choose(chosen.image, chosen.class));
  addEventListener("hashchange", fromAddress);
  fromAddress();
} else element("browser").hidden = true;
