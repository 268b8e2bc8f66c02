"use strict";
// One image is chosen at a time; it is shown at one step of the slider.

const byId = (id) => document.getElementById(id);
const { frame: size, steps, images } = JSON.parse(byId("data").textContent);
const buttons = [...document.querySelectorAll("[data-image]")];
const slider = byId("step"); // null if there are no steps
const picture = byId("picture");
picture.width = picture.height = size;
const sources = new Map(); // decoded pictures, by image

let chosen = buttons[0];
const number = () => chosen.dataset.image;
const shownStep = () => (slider ? Number(slider.value) : 0);

function pictureOf(key) {
  if (!sources.has(key)) sources.set(key, Object.assign(new Image(), { src: images[key].strip ?? images[key].thumbnail }));
  return sources.get(key);
}

function choose(button) {
  chosen = button;
  const { name, label, split, figures, strip } = images[number()];
  buttons.forEach((one) => one.setAttribute("aria-pressed", one === button));
  for (const one of gridOf(button)) one.tabIndex = one === button ? 0 : -1;
  const known = Object.entries(figures).map(([figure, value]) => `${figure} ${value.toFixed(3)}`);
  byId("name").textContent = name;
  byId("facts").textContent = [`image ${number()}`, label, split, ...known].filter(Boolean).join("\u00a0· ");
  if (slider) byId("slide").hidden = strip === null;
  byId("missing").hidden = strip !== null || !steps.length;
  show();
}

function show() {
  const { name, psnr, strip } = images[number()];
  const step = shownStep();
  if (strip !== null) {
    const decibels = psnr[step] === null ? "the decoded image" : `${psnr[step].toFixed(2)}\u00a0dB`;
    const said = `${steps[step].name}: ${steps[step].kept}, ${decibels}`;
    byId("said").replaceChildren(Object.assign(document.createElement("b"), { textContent: steps[step].name }),
      `: ${steps[step].kept}, ${decibels}`);
    slider.setAttribute("aria-valuetext", said);
    byId("fewer").disabled = step === 0;
    byId("more").disabled = step === steps.length - 1;
  }
  picture.setAttribute("aria-label", `${name}, decoded${strip === null ? "" : `; ${steps[step].name}`}`);
  paint(number(), step);
}

async function paint(key, step) {
  const source = pictureOf(key);
  await source.decode();
  if (key !== number() || step !== shownStep()) return; // something else was chosen meanwhile
  draw(picture, source, images[key].strip === null ? null : step);
  film.forEach((canvas, i) => {
    canvas.classList.toggle("here", i === step);
    if (images[key].strip !== null) draw(canvas, source, i);
  });
  document.body.dataset.shown = `${key} ${step}`;
}

function draw(canvas, source, step) {
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "copy";
  context.imageSmoothingEnabled = false;
  const [left, width] = step === null ? [0, source.naturalWidth] : [step * size, size];
  context.drawImage(source, left, 0, width, source.naturalHeight, 0, 0, canvas.width, canvas.height);
}

// --- the slider, its buttons, and a small picture of each step

function move(step) {
  slider.value = Math.min(Math.max(step, 0), steps.length - 1);
  show();
}

const film = slider ? steps.map((_, step) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  canvas.addEventListener("click", () => move(step));
  byId("film").append(canvas);
  return canvas;
}) : [];
if (slider) {
  slider.addEventListener("input", show);
  byId("fewer").addEventListener("click", () => move(shownStep() - 1));
  byId("more").addEventListener("click", () => move(shownStep() + 1));
  byId("slide").addEventListener("keydown", (event) => { if (event.key === "Escape") chosen.focus(); });
}

// --- grids: one stop of the Tab key each, arrow keys within

const gridOf = (button) => [...button.closest(".grid").querySelectorAll("[data-image]")];
const top_ = (button) => button.getBoundingClientRect().top;
const centre = (button) => button.getBoundingClientRect().left + button.offsetWidth / 2;

// The nearest image of the next row up or down.
function inNextRow(button, grid, down) {
  const rows = grid.map(top_).filter((top) => (down ? top > top_(button) + 1 : top < top_(button) - 1));
  const row = down ? Math.min(...rows) : Math.max(...rows);
  const inRow = grid.filter((one) => Math.abs(top_(one) - row) <= 1);
  const away = (one) => Math.abs(centre(one) - centre(button));
  return inRow.sort((one, other) => away(one) - away(other))[0];
}

function next(button, key) {
  const grid = gridOf(button);
  const place = grid.indexOf(button);
  switch (key) {
    case "ArrowRight": return grid[place + 1];
    case "ArrowLeft": return grid[place - 1];
    case "ArrowDown": return inNextRow(button, grid, true);
    case "ArrowUp": return inNextRow(button, grid, false);
    case "Home": return grid[0];
    case "End": return grid[grid.length - 1];
  }
  return null;
}

for (const button of buttons) {
  button.tabIndex = gridOf(button)[0] === button ? 0 : -1;
  button.addEventListener("click", (event) => {
    choose(button);
    if (event.detail === 0 && slider && !byId("slide").hidden) slider.focus(); // by the Enter key
  });
  button.addEventListener("keydown", (event) => {
    const other = next(button, event.key);
    if (other) {
      event.preventDefault();
      other.focus();
      choose(other);
    }
  });
}

choose(chosen);
