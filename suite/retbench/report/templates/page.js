// Tables that sort and filter; figures that show values, hide models and change their scale. All is readable without it.
(() => {
  "use strict";
  const SORTED_FROM = 4, FILTERED_FROM = 12; // rows
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
  const words = new Intl.Collator("en", { numeric: true });
  const all = (selector, node = document) => [...node.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    node.append(...children);
    return node;
  };
  const plain = text => text.toLowerCase().replace(/\s+/g, " ").trim();

  // ---- tables ----
  const rowsOf = body => [...body.rows].filter(row => !row.matches(".group"));

  // Numbers by their value in base units, which the page carries; then words; what has no value comes last.
  const compare = (one, two, sign) => {
    const [a, b] = [one.dataset.value, two.dataset.value];
    if (a !== undefined && b !== undefined) return sign * (a - b);
    if (a !== undefined || b !== undefined) return a === undefined ? 1 : -1;
    return sign * words.compare(one.textContent, two.textContent);
  };

  const makeSortable = table => {
    const headings = [...table.tHead.rows[0].cells], before = [...table.tBodies].map(rowsOf);
    table.classList.add("sortable");
    headings.forEach((heading, column) => {
      const button = make("button", { type: "button" }, ...heading.childNodes);
      heading.append(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const order = NEXT[heading.getAttribute("aria-sort")], sign = order === "descending" ? -1 : 1;
        headings.forEach(other => other.setAttribute("aria-sort", "none"));
        heading.setAttribute("aria-sort", order);
        before.forEach((rows, number) => table.tBodies[number].append(...(order === "none" ? rows
          : [...rows].sort((one, two) => compare(one.cells[column], two.cells[column], sign)))));
      });
    });
  };

  // A box that hides the rows without its words, and groups without a row; the counts follow.
  const makeFilter = table => {
    const box = make("input", { type: "search", placeholder: "Filter rows", "aria-label": `Filter: ${table.caption.textContent}` });
    const count = make("output");
    box.addEventListener("input", () => {
      const wanted = plain(box.value);
      let [shown, total] = [0, 0];
      [...table.tBodies].forEach(body => {
        const rows = rowsOf(body);
        rows.forEach(row => { row.hidden = !plain(row.textContent).includes(wanted); });
        const left = rows.filter(row => !row.hidden).length;
        body.hidden = Boolean(wanted) && !left;
        all(".count", body).forEach(place => { place.textContent = left; });
        [shown, total] = [shown + left, total + rows.length];
      });
      count.textContent = wanted ? `${shown} of ${total} rows` : "";
    });
    (table.closest(".scroll") || table).before(make("p", { class: "filter" }, box, count));
  };

  for (const table of all("table")) {
    const count = [...table.tBodies].flatMap(rowsOf).length;
    if (count >= SORTED_FROM) makeSortable(table);
    if (count >= FILTERED_FROM) makeFilter(table);
  }

  // ---- figures ----
  const hint = make("div", { class: "hint", hidden: "" });
  document.body.append(hint);
  const spotsOf = plot => all("svg:not([hidden]) circle", plot).filter(spot => !spot.matches(".off"));
  all("circle > title").forEach(title => { title.parentNode.dataset.text = title.textContent; title.remove(); });

  const point = (plot, spot) => {
    all("circle.at").forEach(other => other.classList.remove("at"));
    hint.hidden = !spot;
    if (!spot) return;
    spot.classList.add("at");
    hint.textContent = spot.dataset.text;
    const at = spot.getBoundingClientRect();
    hint.style.left = `${Math.max(4, Math.min(at.left, innerWidth - hint.offsetWidth - 4)) + scrollX}px`;
    hint.style.top = `${at.top - hint.offsetHeight - 6 + scrollY}px`;
    all(".value", plot.parentNode).forEach(output => { output.textContent = spot.dataset.text; });
  };

  for (const plot of all(".plot")) {
    if (!plot.querySelector("circle")) continue;
    plot.after(make("output", { class: "value unseen" }));
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", "Values of the figure: arrow keys");
    plot.addEventListener("pointermove", event => {
      const far = spot => (box => Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY))(
        spot.getBoundingClientRect());
      const near = spotsOf(plot).map(spot => [far(spot), spot]).sort((a, b) => a[0] - b[0])[0];
      point(plot, near && near[0] < 40 ? near[1] : null);
    });
    plot.addEventListener("pointerleave", () => point(plot, null));
    plot.addEventListener("blur", () => point(plot, null));
    plot.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], spots = spotsOf(plot);
      if (event.key === "Escape") point(plot, null);
      if (!step || !spots.length) return;
      event.preventDefault();
      const now = spots.findIndex(spot => spot.matches(".at"));
      point(plot, spots[(now < 0 ? (step > 0 ? 0 : spots.length - 1) : now + step + spots.length) % spots.length]);
    });
    const scales = all("svg[data-scale]", plot);
    if (scales.length < 2) continue;
    const button = make("button", { type: "button", class: "scale" }, `${scales[1].dataset.scale} axes`);
    button.addEventListener("click", () => {
      const now = scales.findIndex(svg => !svg.hasAttribute("hidden"));
      scales.forEach((svg, number) => svg.toggleAttribute("hidden", number === now));
      button.textContent = `${scales[now].dataset.scale} axes`;
      point(plot, null);
    });
    plot.before(button);
  }

  // Boxes that show and hide a model in every figure and table.
  const models = document.querySelector("[data-models]"), names = models ? Object.entries(JSON.parse(models.dataset.models)) : [];
  if (names.length > 1) models.append(make("fieldset", { class: "models" }, make("legend", {}, "Models"), ...names.map(([name, label]) => {
    const box = make("input", { type: "checkbox", checked: "" });
    box.addEventListener("change", () => all("[data-model]").filter(node => node.dataset.model === name)
      .forEach(node => node.classList.toggle("off", !box.checked)));
    return make("label", {}, box, ` ${label}`);
  })));
})();
