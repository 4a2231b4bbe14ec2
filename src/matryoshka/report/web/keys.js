// The keyboard: one listener that hands single keys to the view, never while one types or holds a modifier; and the help dialog.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el } = matryoshka.dom;

  const HELP = [
    [["/"], "search"],
    [["j", "k"], "down and up the list; arrow keys too"],
    [["Enter"], "open the feature"],
    [["n", "p"], "next and previous feature in the list’s order; → and ← too"],
    [["c"], "compare with…"],
    [["e"], "edit the label"],
    [["o", "l"], "overview, list of features"],
    [["m", "h"], "map, tree (hierarchy)"],
    [["t"], "light or dark"],
    [["?"], "this help"],
    [["Esc"], "close, or back to the list"],
  ];
  const NOTE = "With the focus on the map, arrows move it, + and − zoom, 0 shows all, Enter opens the feature in its middle. "
    + "With the focus on a shaded token, → and ← go from one shaded token to the next.";

  function fillHelp(dialog) {
    dialog.replaceChildren(
      el("h2", { id: "help-title" }, "Keys"),
      el("dl", {}, HELP.map(([keys, meaning]) => el("div", {}, el("dt", {}, keys.map((key) => [el("kbd", {}, key), " "])),
        el("dd", {}, meaning)))),
      el("p", { class: "muted" }, NOTE),
      el("form", { method: "dialog" }, el("button", { type: "submit" }, "Close")));
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }

  const typing = (target) => target.isContentEditable || target.closest?.("input, textarea, select");

  // view() → the present view, whose `keys` come before the common ones. A handler that returns false leaves the key alone.
  function listen(view, common) {
    document.addEventListener("keydown", (event) => {
      if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
      if (typing(event.target) || document.querySelector("dialog[open]")) return;
      const act = view()?.keys?.[event.key] ?? common[event.key];
      if (act && act(event) !== false) event.preventDefault();
    });
  }

  matryoshka.keys = { listen, fillHelp };
})();
