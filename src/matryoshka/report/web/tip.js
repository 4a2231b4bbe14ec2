// What a word or a token means, beside it, while it is pointed at or has the focus.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el } = matryoshka.dom;

  // One tooltip for all that has `facts()` within `root`, a shaded token or a term: for whichever is pointed at or focused.
  function addTooltip(root) {
    const tip = el("div", { class: "tip", role: "tooltip", id: `tip-${Math.random().toString(36).slice(2)}`, hidden: true });
    const show = (mark) => {
      tip.replaceChildren(...mark.facts());
      tip.classList.toggle("sentence", mark.matches(".term"));
      tip.hidden = false;
      const at = mark.getClientRects()[0], box = tip.getBoundingClientRect();
      const rightmost = document.documentElement.clientWidth - box.width - 6;
      tip.style.left = `${Math.max(6, Math.min(at.left + at.width / 2 - box.width / 2, rightmost))}px`;
      tip.style.top = `${at.top > box.height + 12 ? at.top - box.height - 6 : at.bottom + 6}px`;
      mark.setAttribute("aria-describedby", tip.id);
    };
    const hide = () => { tip.hidden = true; };
    const over = ({ target }) => {
      const mark = target.closest("mark, .term");
      if (mark?.facts) show(mark);
      else hide();
    };
    root.addEventListener("pointerover", over);
    root.addEventListener("focusin", over);
    for (const event of ["pointerleave", "focusout"]) root.addEventListener(event, hide);
    root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || tip.hidden) return;
      event.preventDefault();  // so that it closes no more than the tooltip
      hide();
    });
    root.append(tip);
  }

  // A word with a meaning: reached by Tab, explained by the tooltip of the view that it stands in.
  function term(word, meaning) {
    const node = el("button", { type: "button", class: "term" }, word);
    node.facts = () => [meaning];
    return node;
  }

  Object.assign(matryoshka, { addTooltip, term });
})();
