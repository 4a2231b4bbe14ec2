// Moving about on a canvas of points: mouse, wheel, fingers and keys. Tells what is pointed at, and what is chosen.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el } = matryoshka.dom;
  const STEP = 70, NEARER = 1.5;  // pixels a key moves; factor of one step of zoom
  const STILL = 5;                // pixels that a click may move

  const between = ([a, b]) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, far: Math.hypot(a.x - b.x, a.y - b.y) });

  // element has the focus for keys and the pointer's events; point(i | null, byKey) and choose(i, byTouch) are told.
  function navigate(element, points, { point, choose }) {
    const pointers = new Map();
    let moved = 0, pinch = null;

    const at = ({ clientX, clientY }) => {
      const box = points.canvas.getBoundingClientRect();
      return { x: clientX - box.left, y: clientY - box.top };
    };
    const inTheMiddle = () => points.nearest({ x: points.width / 2, y: points.height / 2 }, Infinity);

    element.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      element.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
      pinch = pointers.size === 2 ? between([...pointers.values()]) : null;
      if (pointers.size === 1) moved = 0;
    });
    element.addEventListener("pointermove", (event) => {
      const here = at(event), before = pointers.get(event.pointerId);
      if (!before) return point(points.nearest(here), false);
      pointers.set(event.pointerId, here);
      moved += Math.hypot(here.x - before.x, here.y - before.y);
      if (pointers.size === 2) {
        const now = between([...pointers.values()]);
        points.move(now.x - pinch.x, now.y - pinch.y);
        points.zoom(now.far / Math.max(1, pinch.far), now);
        pinch = now;
      } else if (moved > STILL) points.move(here.x - before.x, here.y - before.y);
    });
    const end = (event, clicked) => {
      const one = pointers.size === 1 && pointers.delete(event.pointerId);
      pointers.delete(event.pointerId);
      if (!one || !clicked || moved > STILL) return;
      const touch = event.pointerType === "touch";
      const chosen = points.nearest(at(event), touch ? 24 : undefined);
      if (chosen !== null) choose(chosen, touch);
    };
    element.addEventListener("pointerup", (event) => end(event, true));
    element.addEventListener("pointercancel", (event) => end(event, false));
    element.addEventListener("pointerleave", () => { if (!pointers.size) point(null, false); });
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      points.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), at(event));
    }, { passive: false });

    const keys = {
      ArrowLeft: () => points.move(STEP, 0), ArrowRight: () => points.move(-STEP, 0),
      ArrowUp: () => points.move(0, STEP), ArrowDown: () => points.move(0, -STEP),
      "+": () => points.zoom(NEARER), "=": () => points.zoom(NEARER), "-": () => points.zoom(1 / NEARER), 0: () => points.fit(),
    };
    element.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Enter") { const chosen = inTheMiddle(); if (chosen !== null) choose(chosen, false); }
      else if (keys[event.key]) { keys[event.key](); point(inTheMiddle(), true); }
      else return;
      event.preventDefault();
    });
    const button = (name, title, act) => el("button", { type: "button", class: "quiet", "aria-label": title, title, click: act },
      name);
    return el("div", { class: "zoom" }, button("+", "Nearer", () => points.zoom(NEARER)),
      button("−", "Further away", () => points.zoom(1 / NEARER)),
      button("All", "Show all", () => points.fit()));
  }

  matryoshka.navigate = navigate;
})();
