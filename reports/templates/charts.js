// Makes the charts of levels readable by pointer, touch and keyboard: the exact values of a level with their intervals,
// one cross-hair through all charts of a workload, and legends that hide a deployment. Everything shown is taken from
// the drawings and set as text; without this script the page says the same in its tables.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  function element(name, className, text) {
    const made = document.createElement(name);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // One chart in its frame. `at` is the level that is read out, an index into `levels`, or null.
  class Chart {
    constructor(svg, group) {
      this.svg = svg;
      this.group = group;
      this.at = null;
      this.curves = [...svg.querySelectorAll(".curve")];
      this.marks = this.curves.flatMap(curve => [...curve.querySelectorAll(".mark")].map(node => this.mark(node, curve)));
      this.levels = [...new Map(this.marks.map(mark => [mark.level, mark.x]))].sort((a, b) => a[1] - b[1]);
      this.frame();
      this.listen();
    }

    mark(node, curve) {
      const title = node.querySelector("title");
      title.remove(); // the browser would show it beside ours
      const { level, word } = node.dataset;
      return { node, curve, level, word, said: title.textContent, x: node.transform.baseVal[0].matrix.e };
    }

    frame() {
      const { width, height } = this.svg.viewBox.baseVal;
      this.width = width;
      this.line = document.createElementNS(SVG, "path");
      this.line.setAttribute("d", `M0,20V${height - 42}`);
      this.line.setAttribute("class", "cross off");
      this.svg.insertBefore(this.line, this.curves[0]);
      this.readout = element("div", "readout");
      this.readout.hidden = true;
      this.plot = element("div", "plot");
      this.svg.replaceWith(this.plot);
      this.plot.append(this.svg, this.readout);
      const told = { role: "slider", tabindex: 0, "aria-label": this.svg.getAttribute("aria-label"), "aria-valuemin": 1 };
      told["aria-valuemax"] = this.levels.length;
      for (const [name, value] of Object.entries(told)) this.plot.setAttribute(name, value);
      this.tell(0);
    }

    listen() {
      const point = event => this.group.read(this, this.nearest(event.clientX));
      this.svg.addEventListener("pointermove", point);
      this.svg.addEventListener("pointerdown", point);
      this.svg.addEventListener("pointerleave", event => {
        if (event.pointerType === "mouse") this.group.clear();
      });
      this.plot.addEventListener("focus", () => {
        if (this.plot.matches(":focus-visible")) this.group.read(this, this.at ?? 0);
      });
      this.plot.addEventListener("blur", () => this.group.clear());
      this.plot.addEventListener("keydown", event => this.key(event));
    }

    key(event) {
      const last = this.levels.length - 1, at = this.at ?? 0;
      const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: last }[event.key];
      if (event.key === "Escape") this.group.clear();
      else if (to !== undefined) this.group.read(this, Math.min(last, Math.max(0, to)));
      else return;
      event.preventDefault();
    }

    nearest(clientX) {
      const box = this.svg.getBoundingClientRect();
      const x = (clientX - box.left) / box.width * this.width;
      const distances = this.levels.map(level => Math.abs(level[1] - x));
      return distances.indexOf(Math.min(...distances));
    }

    shown(at) {
      return this.marks.filter(mark => mark.level === this.levels[at][0] && !mark.curve.classList.contains("off"));
    }

    tell(at) {
      const said = this.shown(at).map(mark => [mark.curve.dataset.name, mark.said, mark.word].join(" ").trim());
      this.plot.setAttribute("aria-valuenow", at + 1);
      this.plot.setAttribute("aria-valuetext", `${this.levels[at][0]}: ${said.join("; ") || "nothing shown"}`);
    }

    // The cross-hair of a level that another chart of the group reads out; null takes it away.
    cross(level) {
      const found = this.levels.find(own => own[0] === level);
      this.line.classList.toggle("off", !found);
      if (found) this.line.setAttribute("transform", `translate(${found[1]},0)`);
      for (const mark of this.marks) mark.node.classList.toggle("read", mark.level === level);
    }

    read(at) {
      this.at = at;
      const [level, x] = this.levels[at];
      this.tell(at);
      this.readout.replaceChildren(element("strong", "", level));
      for (const mark of this.shown(at)) {
        const row = element("div", "row");
        const sample = document.createElementNS(SVG, "svg");
        sample.setAttribute("viewBox", "-7 -7 14 14");
        const shape = mark.node.cloneNode();
        for (const name of ["transform", "class"]) shape.removeAttribute(name);
        shape.setAttribute("stroke", mark.curve.getAttribute("stroke"));
        sample.append(shape);
        row.append(sample, element("span", "name", mark.curve.dataset.name), element("span", "value", mark.said));
        if (mark.word && mark.word !== "PASS") row.append(element("span", "word", mark.word));
        this.readout.append(row);
      }
      const share = x / this.width;
      this.readout.style.left = share < 0.5 ? `calc(${100 * share}% + .7rem)` : "auto";
      this.readout.style.right = share < 0.5 ? "auto" : `calc(${100 * (1 - share)}% + .7rem)`;
      this.readout.hidden = false;
    }

    hide() {
      this.readout.hidden = true;
      this.at = null;
      this.cross(null);
    }
  }

  // The charts of one workload, with the legend above them.
  class Group {
    constructor(pictures) {
      this.charts = [...pictures.querySelectorAll("svg.levels")].filter(svg => svg.querySelector(".mark")).map(svg => new Chart(svg, this));
      const above = pictures.previousElementSibling;
      const legend = above?.matches(".legend") ? above : above?.querySelector(".legend");
      legend?.querySelectorAll("li[data-slot]").forEach(item => this.switch(item));
    }

    switch(item) {
      const button = element("button", "");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(...item.childNodes);
      item.append(button);
      button.addEventListener("click", () => {
        const show = button.getAttribute("aria-pressed") === "false";
        button.setAttribute("aria-pressed", show);
        for (const chart of this.charts) {
          for (const curve of chart.curves) if (curve.dataset.slot === item.dataset.slot) curve.classList.toggle("off", !show);
          chart.tell(chart.at ?? 0);
        }
      });
    }

    read(chart, at) {
      for (const other of this.charts) if (other !== chart) other.hide();
      chart.read(at);
      for (const each of this.charts) each.cross(chart.levels[at][0]);
    }

    clear() {
      for (const chart of this.charts) chart.hide();
    }
  }

  const figures = [...document.querySelectorAll("svg.levels")].map(svg => svg.closest("figure"));
  for (const pictures of new Set(figures.map(figure => figure.parentElement))) new Group(pictures);
})();
