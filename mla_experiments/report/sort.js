"use strict";
// A button in a table's heading sorts its column, up and then down; numbers before words, what is not known at the end.
(() => {
  const number = text => parseFloat(text.replaceAll(",", ""));
  const text = (row, column) => row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) || a.localeCompare(b) : x - y;
  };
  document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex, body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows], isKnown = row => !["", "–"].includes(text(row, column));
    rows.sort((a, b) => isKnown(b) - isKnown(a) || compare(text(a, column), text(b, column)) * (up ? 1 : -1));
    body.append(...rows);
  }));
})();
