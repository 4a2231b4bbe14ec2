// Light or dark: the system's choice until the reader makes one, which is kept. Runs before the first paint, so that nothing flashes.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const KEY = "matryoshka.theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Storage may be forbidden (private windows, file://): then the choice lasts as long as the page.
  function remembered() {
    try { return localStorage.getItem(KEY); } catch { return null; }
  }

  function remember(theme) {
    try { localStorage.setItem(KEY, theme); } catch { /* lasts as long as the page */ }
  }

  function current() {
    return document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  }

  function toggle() {
    const theme = current() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    remember(theme);
  }

  const theme = remembered();
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  matryoshka.theme = { current, toggle, onSystemChange: (listener) => dark.addEventListener("change", listener) };
})();
