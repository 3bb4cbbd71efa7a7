"use strict";
(function () {
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = table.querySelectorAll("th");
    heads.forEach(function (head, column) {
      var button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(function (other) { if (other.querySelector("button")) other.setAttribute("aria-sort", "none"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        var body = table.tBodies[0];
        var rows = Array.prototype.slice.call(body.rows);
        rows.sort(function (a, b) {
          var x = a.cells[column].dataset.value, y = b.cells[column].dataset.value;
          var difference = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return up ? difference : -difference;
        });
        rows.forEach(function (row) { body.appendChild(row); });
      });
    });
  });

  var told = document.getElementById("told");
  document.querySelectorAll(".network li").forEach(function (item) {
    function tell() { if (told) told.textContent = item.dataset.told; }
    item.addEventListener("mouseenter", tell);
    item.addEventListener("focus", tell);
    item.addEventListener("keydown", function (event) {
      var next = event.key === "ArrowDown" ? item.nextElementSibling : event.key === "ArrowUp" ? item.previousElementSibling : null;
      if (!next) return;
      event.preventDefault();
      item.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });

  function choose(layer, neuron) {
    var chart = document.querySelector('.potentials[data-layer="' + layer + '"]');
    if (!chart) return;
    chart.querySelectorAll(".trace").forEach(function (trace) {
      trace.classList.toggle("off", trace.dataset.neuron !== String(neuron));
    });
    document.querySelectorAll('.pick[data-layer="' + layer + '"]').forEach(function (row) {
      row.classList.toggle("on", row.dataset.neuron === String(neuron));
    });
    var select = document.querySelector('select[data-layer="' + layer + '"]');
    if (select) select.value = String(neuron);
  }
  document.querySelectorAll(".pick").forEach(function (row) {
    row.addEventListener("click", function () { choose(row.dataset.layer, row.dataset.neuron); });
  });
  document.querySelectorAll("select[data-layer]").forEach(function (select) {
    select.addEventListener("change", function () { choose(select.dataset.layer, select.value); });
    choose(select.dataset.layer, select.value);
  });

  document.querySelectorAll("button[data-copy]").forEach(function (button) {
    button.hidden = false;
    button.addEventListener("click", function () {
      var text = document.getElementById(button.dataset.copy).textContent;
      function done() { button.textContent = "copied"; }
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, function () {});
    });
  });
  document.querySelectorAll("button[data-svg]").forEach(function (button) {
    button.hidden = false;
    button.addEventListener("click", function () {
      var source = button.parentElement.querySelector("svg");
      var copy = source.cloneNode(true);
      copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
      var parts = source.querySelectorAll("*"), copies = copy.querySelectorAll("*");
      parts.forEach(function (part, k) {
        var style = getComputedStyle(part);
        ["fill", "stroke", "stroke-width", "stroke-dasharray", "paint-order", "font", "text-anchor", "display", "opacity"].forEach(function (key) {
          copies[k].style.setProperty(key, style.getPropertyValue(key));
        });
      });
      var link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([copy.outerHTML], { type: "image/svg+xml" }));
      link.download = button.dataset.svg;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  });
})();
