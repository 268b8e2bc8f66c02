"use strict";
// The slider shows one cutoff at a time: its words, its pictures, its row, and its marks in the plots.

const byId = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const { cutoffs, originals, figures: own } = JSON.parse(byId("data").textContent);
const figures = [...own, ...all("script.figures").flatMap((script) => JSON.parse(script.textContent))];
const slider = byId("cutoff");
const ticks = all(".ticks span");
const rows = all("#cutoffs-table tbody tr");

function show(index) {
  const cutoff = cutoffs[index];
  slider.value = index;
  slider.setAttribute("aria-valuetext", cutoff.spoken);
  byId("rule").textContent = cutoff.rule;
  byId("brief").textContent = cutoff.brief.join(" · ");
  byId("sentences").textContent = cutoff.sentences;
  byId("fewer").disabled = index === 0;
  byId("more").disabled = index === cutoffs.length - 1;
  ticks.forEach((tick, i) => tick.classList.toggle("here", i === index));
  rows.forEach((row, i) => (i === index ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current")));
  paint(index);
  figures.forEach((figure) => mark(figure, index));
}

const shown = () => Number(slider.value);
slider.addEventListener("input", () => show(shown()));
byId("fewer").addEventListener("click", () => show(Math.max(shown() - 1, 0)));
byId("more").addEventListener("click", () => show(Math.min(shown() + 1, cutoffs.length - 1)));
rows.forEach((row, index) => row.addEventListener("click", () => show(index)));
byId("differences").addEventListener("change", (event) =>
  document.querySelector(".pictures").classList.toggle("differences", event.target.checked));

// --- pictures: all images of a cutoff stand side by side in one PNG

const sprite = (uri) => Object.assign(new Image(), { src: uri });
const original = sprite(originals);
const decoded = cutoffs.map((cutoff) => sprite(cutoff.picture));
const canvases = ["original", "decoded", "difference canvas"].map((name) => all(`.pictures .${name}`));

async function paint(index) {
  await Promise.all([original.decode(), decoded[index].decode()]);
  if (index !== shown()) return; // the slider has gone on meanwhile
  const layers = [[original], [decoded[index]], [original, decoded[index]]];
  layers.forEach((sprites, kind) => canvases[kind].forEach((canvas, place) => draw(canvas, sprites, place)));
}

function draw(canvas, sprites, place) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  sprites.forEach((image, layer) => {
    context.globalCompositeOperation = layer ? "difference" : "copy";
    context.drawImage(image, place * width, 0, width, height, 0, 0, width, height);
  });
}

// --- plots

const plotOf = (figure) => byId(`plot-${figure.name}`);
const settings = { displayModeBar: false, responsive: true };

function mark(figure, index) {
  const plot = plotOf(figure);
  if (!plot.data) return; // not drawn yet
  if (figure.marks.length) {
    const { x, y } = figure.marks[index];
    const vertical = { "shapes[0].x0": x, "shapes[0].x1": x };
    const last = `shapes[${figure.figure.layout.shapes.length - 1}]`;
    const lines = y === undefined ? vertical : { ...vertical, [`${last}.y0`]: y, [`${last}.y1`]: y };
    Plotly.update(plot, figure.points ? { selectedpoints: [[index]] } : {}, lines, [0]);
  }
  if (figure.kept.length) {
    const lengths = figure.kept[index];
    const axis = plot.data[0].orientation === "h" ? "x" : "y";
    const traces = lengths.map((_, i) => plot.data.length - lengths.length + i); // the last ones
    Plotly.restyle(plot, { [axis]: lengths }, traces);
  }
}

function colour(figure) {
  const style = getComputedStyle(document.documentElement);
  const [text, muted, panel, grid, accent] =
    ["--text", "--muted", "--panel", "--grid", "--accent"].map((name) => style.getPropertyValue(name).trim());
  const change = { "font.color": text, "font.family": "system-ui, sans-serif" };
  for (const axis of ["xaxis", "yaxis"]) {
    change[`${axis}.gridcolor`] = grid;
    change[`${axis}.title.font.color`] = muted;
  }
  Object.assign(change, { "hoverlabel.bgcolor": panel, "hoverlabel.font.color": text, "hoverlabel.bordercolor": muted });
  (figure.figure.layout.shapes ?? []).forEach((shape, i) => {
    if (shape.name === "mark") change[`shapes[${i}].line.color`] = accent;
  });
  Plotly.relayout(plotOf(figure), change);
}

// The plotting library is part of this page, compressed.
async function loadPlotly() {
  const packed = Uint8Array.from(atob(byId("plotly").textContent), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

async function drawPlots() {
  await loadPlotly();
  for (const figure of figures) {
    const plot = plotOf(figure);
    await Plotly.newPlot(plot, figure.figure.data, figure.figure.layout, settings);
    colour(figure);
    mark(figure, shown());
    if (figure.points) plot.on("plotly_click", (event) => show(event.points[0].pointIndex));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => figures.forEach(colour));
  document.body.dataset.drawn = "true";
}

show(shown());
drawPlots().catch((error) => {
  all(".plot").forEach((plot) => {
    plot.classList.add("failed");
    plot.textContent = "This browser cannot draw the plots; a newer one can.";
  });
  throw error;
});
