// Tables get headings that sort and a box that filters. Without this script they are read as they stand.
(() => {
  "use strict";
  const SORTED_FROM = 4, FILTERED_FROM = 20; // rows
  const BACK = { none: "ascending", ascending: "descending", descending: "none" };
  const words = new Intl.Collator("en", { numeric: true });

  const rowsOf = table => [...table.tBodies[0].rows];

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

  // One box for some tables: it hides the rows that lack its words, tables without a row left, and unfolds the others.
  const makeFilter = (tables, before, label) => {
    const box = document.createElement("input"), count = document.createElement("output"), line = document.createElement("p");
    const rows = tables.flatMap(rowsOf), folds = tables.map(table => table.closest("details")).filter(Boolean);
    let wereOpen = null; // which folds, before there were words in the box
    box.type = "search";
    box.placeholder = "Filter rows";
    box.setAttribute("aria-label", label);
    line.className = "filter";
    line.append(box, count);
    box.addEventListener("input", () => {
      const wanted = plain(box.value);
      rows.forEach(row => {
        row.hidden = ![...row.cells].some(cell => plain(cell.textContent).includes(wanted));
      });
      if (tables.length > 1) tables.forEach(table => {
        table.parentElement.hidden = rowsOf(table).every(row => row.hidden);
      });
      wereOpen ??= folds.map(fold => fold.open);
      folds.forEach((fold, number) => { fold.open = wanted ? true : wereOpen[number]; });
      if (!wanted) wereOpen = null;
      count.textContent = box.value ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : "";
    });
    before.before(line);
  };

  // A link into what is folded unfolds it, also where the browser does not.
  const reveal = () => {
    const target = document.getElementById(location.hash.slice(1));
    const folds = [];
    for (let node = target; node; node = node.parentElement) if (node.matches("details:not([open])")) folds.push(node);
    folds.forEach(fold => { fold.open = true; });
    if (folds.length) target.scrollIntoView();
  };

  for (const table of document.querySelectorAll("table")) {
    const rows = rowsOf(table);
    if (rows.length >= SORTED_FROM) makeSortable(table, rows);
    if (rows.length >= FILTERED_FROM && !table.closest("[data-filter]"))
      makeFilter([table], table.closest(".scroll") || table, "Filter the rows of the table below");
  }
  for (const part of document.querySelectorAll("[data-filter]"))
    makeFilter([...part.querySelectorAll("table")], part.querySelector(".group"), part.dataset.filter);
  addEventListener("hashchange", reveal);
  reveal();
})();
