"use strict";
// The front of the atlas: points of all studies, those within a budget of cache, on the paper that the site has.
(() => {
  const {points, marks, colors, context} = JSON.parse(document.getElementById("atlas-data").textContent);
  const place = document.getElementById("atlas-front"), rows = [...document.querySelector(".atlas-points tbody").rows];
  const [what, study, budget, said] =
    ["what", "study", "budget", "said"].map(id => document.getElementById("atlas-" + id));
  const AXES = {quality: "bits per byte, less is better", recall: "answers right, %",
                speed: `tokens/s at ${context.toLocaleString("en")} tokens`};
  const steps = [...new Set(points.map(point => point.cache))].sort((a, b) => a - b);
  Object.assign(budget, {min: 0, max: steps.length - 1, value: steps.length - 1});
  const ticks = steps.filter((step, place) => place === steps.length - 1 || steps[place + 1] >= 1.25 * step);

  const value = point => {  // where a point stands, and how far its bar reaches down and up
    const found = point[what.value];
    if (!found) return null;
    if (what.value === "speed") return [found.median, found.median - found.low, found.high - found.median];
    const scale = what.value === "recall" ? 100 : 1, reach = scale * (found.half_width ?? 0);
    return [scale * found.mean, reach, reach];
  };

  const key = study => ({  // marks are of studies, whatever the colour
    type: "scatter", mode: "markers", x: [null], y: [null], name: study,
    marker: {color: "#888", size: 11, symbol: marks[study]},
  });

  function trace(point) {
    const [y, down, up] = value(point), dark = document.body.dataset.mdColorScheme === "slate";
    const color = colors[dark ? "dark" : "light"][point.attention] ?? "#888";
    return {
      type: "scatter", mode: "markers+text", x: [point.cache], y: [y], text: [point.attention],
      textposition: "middle right", name: point.study, showlegend: false,
      marker: {color, size: 11, symbol: marks[point.study]},
      error_y: {type: "data", symmetric: false, array: [up], arrayminus: [down], color, thickness: 1.5, width: 5},
      customdata: [[`<b>${point.name}</b> (${point.study})`, point.recipe, point.budget, point.turned && `turned by another study: ${point.turned}`]],
      hovertemplate: "%{customdata[0]}<br>%{x:,} bytes, %{y:.4~f}<br>%{customdata[1]}<br>" +
                     "%{customdata[2]}<br>%{customdata[3]}<extra></extra>",
    };
  }

  function draw() {
    const most = steps[budget.value], fits = point => point.cache <= most && (!study.value || point.study === study.value);
    said.textContent = `up to ${most.toLocaleString("en")} bytes a token`;
    rows.forEach((row, number) => { row.hidden = !fits(points[number]); });
    const style = getComputedStyle(document.querySelector(".md-typeset"));
    const axis = {gridcolor: "rgba(128,128,128,.25)", zeroline: false, automargin: true};
    const shown = points.filter(point => fits(point) && value(point));
    const lines = most < steps.at(-1) ? [{type: "line", x0: most, x1: most, yref: "paper", y0: 0, y1: 1,
                                          line: {color: style.color, dash: "dash", width: 1}}] : [];
    Plotly.react(place, [...shown.map(trace), ...[...new Set(shown.map(point => point.study))].map(key)], {
      font: {family: style.fontFamily, color: style.color, size: 12}, margin: {t: 10, r: 10, l: 60, b: 50},
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", shapes: lines, dragmode: false,
      showlegend: true, legend: {orientation: "h", y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false},
      hoverlabel: {align: "left"},
      xaxis: {...axis, type: "log", title: {text: "cache, bytes per token"}, tickvals: ticks, fixedrange: true,
              ticktext: ticks.map(step => step.toLocaleString("en")),
              range: [Math.log10(steps[0] / 1.25), Math.log10(steps.at(-1) * 1.5)]},
      yaxis: {...axis, title: {text: AXES[what.value]}, fixedrange: true},
    }, {responsive: true, displayModeBar: false});
  }

  for (const control of [what, study, budget]) control.addEventListener("input", draw);
  new MutationObserver(draw).observe(document.body, {attributeFilter: ["data-md-color-scheme"]});
  draw();
})();
