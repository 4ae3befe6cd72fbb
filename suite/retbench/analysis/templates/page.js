// Tables get headings that sort and a box that filters. Without this script they are read as they stand.
(() => {
  "use strict";
  const SORTED_FROM = 4, FILTERED_FROM = 10; // rows
  const BACK = { none: "ascending", ascending: "descending", descending: "none" };
  const words = new Intl.Collator("en", { numeric: true });

  const plain = text => text.toLowerCase().replace(/\s+/g, " ").trim();

  // Numbers by their value in base units, which the page carries; then words; what has no value comes last.
  const compare = (one, two, sign) => {
    const [a, b] = [one.dataset.value, two.dataset.value];
    if (a !== undefined && b !== undefined) return sign * (a - b);
    if (a !== undefined || b !== undefined) return a === undefined ? 1 : -1;
    return sign * words.compare(one.textContent, two.textContent);
  };

  const makeSortable = (table, rows) => {
    const headings = [...table.tHead.rows[0].cells];
    table.classList.add("sortable");
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const order = BACK[heading.getAttribute("aria-sort")];
        headings.forEach(other => other.setAttribute("aria-sort", "none"));
        heading.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        const sorted = order === "none" ? rows
          : [...rows].sort((one, two) => compare(one.cells[column], two.cells[column], sign));
        table.tBodies[0].append(...sorted);
      });
    });
  };

  const makeFilter = (table, rows) => {
    const box = document.createElement("input"), count = document.createElement("output"), line = document.createElement("p");
    box.type = "search";
    box.placeholder = "Filter rows";
    box.setAttribute("aria-label", "Filter the rows of the table below");
    line.className = "filter";
    line.append(box, count);
    box.addEventListener("input", () => {
      const wanted = plain(box.value);
      rows.forEach(row => {
        row.hidden = ![...row.cells].some(cell => plain(cell.textContent).includes(wanted));
      });
      count.textContent = box.value ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : "";
    });
    (table.closest(".scroll") || table).before(line);
  };

  for (const table of document.querySelectorAll("table")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length >= SORTED_FROM) makeSortable(table, rows);
    if (rows.length >= FILTERED_FROM) makeFilter(table, rows);
  }
})();
