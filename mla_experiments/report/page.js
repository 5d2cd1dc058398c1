"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)"), coarse = matchMedia("(pointer: coarse)");
const hidden = new Set();
const PRINTED = {width: 320, height: 250};  // pixels: half a page of A4
let printing = false;

const paper = () => getComputedStyle(document.body).backgroundColor;
const colors = () => page.colors[dark.matches && !printing ? "dark" : "light"];

function painted(trace) {
  const owner = trace.meta, color = owner === null ? "#888" : colors()[owner];
  return {
    ...trace,
    visible: !hidden.has(owner),
    line: {...trace.line, color},
    marker: {...trace.marker, color, line: {color: printing ? "#fff" : paper(), width: 1}},
    fillcolor: color + "28",
    ...(trace.error_y && {error_y: {...trace.error_y, color}}),
  };
}

function draw(key) {
  const place = document.getElementById("chart-" + key), {data, layout} = page.charts[key];
  if (place.closest("details:not([open])")) return;  // it has no width yet
  const {color, fontFamily} = getComputedStyle(document.body), ink = printing ? "#1b1b1b" : color;
  const axis = own => ({...own, gridcolor: "rgba(128,128,128,.25)", linecolor: "rgba(128,128,128,.6)",
                        uirevision: own.type});
  Plotly.react(place, data.map(painted), {
    ...layout,
    ...(printing ? PRINTED : {autosize: true}),
    font: {color: ink, family: fontFamily, size: printing ? 10 : 12},
    hoverlabel: {font: {family: fontFamily}},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    dragmode: coarse.matches ? false : "zoom",  // a finger scrolls the page
    ...(layout.shapes && {shapes: layout.shapes.map(line => ({...line, label: {...line.label, font: {color: ink}}}))}),
    xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
  }, {responsive: true, displayModeBar: false});
}

function paintKeys() {
  for (const button of document.querySelectorAll(".key button")) {
    const owner = Number(button.dataset.owner);
    button.setAttribute("aria-pressed", !hidden.has(owner));
    button.querySelector("svg").style.color = colors()[owner];
  }
}

function drawAll() {
  paintKeys();
  Object.keys(page.charts).forEach(draw);
}

document.querySelectorAll(".key button").forEach(button => button.addEventListener("click", () => {
  const owner = Number(button.dataset.owner);
  if (!hidden.delete(owner)) hidden.add(owner);
  drawAll();
}));

document.querySelectorAll(".axes button").forEach(button => button.addEventListener("click", () => {
  const {chart, axis} = button.dataset, own = page.charts[chart].layout[axis], log = own.type !== "log";
  own.type = log ? "log" : "linear";
  own.tickmode = log ? "array" : "auto";
  own.autorange = !log || !own.range;  // a range is of the logarithm
  button.setAttribute("aria-pressed", log);
  draw(chart);
}));

const folds = [...document.querySelectorAll("details")];
let opened = [];
folds.forEach(fold => fold.addEventListener("toggle", drawAll));

function print(begins) {  // on paper nothing can be unfolded
  printing = begins;
  if (begins) opened = folds.filter(fold => fold.open);
  folds.forEach(fold => { fold.open = begins || opened.includes(fold); });
  drawAll();
}

dark.addEventListener("change", drawAll);
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));
drawAll();
