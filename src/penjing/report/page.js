"use strict";
(() => {
  const { config, charts } = JSON.parse(document.getElementById("chart-data").textContent);
  const options = { config, actions: false, renderer: "svg", logLevel: 1 /* errors */, tooltip: { theme: "page" } };
  const drawn = Object.entries(charts).map(async ([name, spec]) => {
    const box = document.getElementById(`chart-${name}`);
    try {
      await vegaEmbed(box, spec, options);
      box.dataset.drawn = "yes";
    } catch (error) {
      box.textContent = "This chart could not be drawn. Its figures are in report.json.";
      console.error(name, error);
    }
  });
  Promise.all(drawn).then(() => { document.documentElement.dataset.charts = "done"; });
})();
