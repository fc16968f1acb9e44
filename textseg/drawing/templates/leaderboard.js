"use strict";
// Sorts tables by the column whose heading is clicked; rows without a value stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const other = { ascending: "descending", descending: "ascending" };
    const order = other[heading.getAttribute("aria-sort")] || heading.dataset.first;
    for (const one of headings) one.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows];
    const numbers = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
    rows.sort((one, two) => {
      const [a, b] = [value(one), value(two)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (numbers ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
    });
    table.tBodies[0].append(...rows);
  }));
}
// Shows one metric and one way to count misses; all buttons of an axis say the same. Without a script all is shown.
const chosen = {};
const buttons = [...document.querySelectorAll("input[data-axis]")];
function show() {
  for (const part of document.querySelectorAll("[data-aggregate],[data-metric]")) {
    part.hidden = Object.keys(chosen).some((axis) => axis in part.dataset && part.dataset[axis] !== chosen[axis]);
  }
  for (const button of buttons) button.checked = chosen[button.dataset.axis] === button.value;
}
for (const button of buttons) {
  if (button.checked) chosen[button.dataset.axis] = button.value;
  button.addEventListener("change", () => { chosen[button.dataset.axis] = button.value; show(); });
}
show();
document.documentElement.classList.add("scripted");
// What is folded is printed, too.
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
