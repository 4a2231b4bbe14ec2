// Colours that mean something: a ring's, which goes from the first to the last; a community's; a density's. As CSS for both themes;
// `now` is the one of the present theme, for canvas, which knows one colour at a time.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const oklch = (lightness, chroma,
    hue) => `oklch(${lightness.toFixed(3)} ${chroma.toFixed(3)} ${(((hue % 360) + 360) % 360).toFixed(1)})`;
  const both = (light, dark) => `light-dark(${light}, ${dark})`;
  const NONE = both("#b9b1a4", "#5f5951");

  // From amber over red and violet to blue, and from light to dark: the order shows to every eye.
  function ring(number, count) {
    const share = count > 1 ? number / (count - 1) : 0, hue = 62 - 160 * share;
    return both(oklch(0.66 - 0.22 * share, 0.15, hue), oklch(0.82 - 0.2 * share, 0.14, hue));
  }

  // Neighbours in number are far apart in hue. Below 0: of none.
  function community(number) {
    if (number < 0) return NONE;
    const hue = 30 + 137.508 * number, lighter = number % 3 === 1 ? 0.08 : 0;
    return both(oklch(0.56 + lighter, 0.14, hue), oklch(0.72 + lighter, 0.13, hue));
  }

  // `share`: 0 the rarest, 1 the densest.
  function density(share) {
    return both(oklch(0.82 - 0.44 * share, 0.06 + 0.09 * share, 60 - 30 * share),
      oklch(0.42 + 0.46 * share, 0.04 + 0.1 * share, 45 + 30 * share));
  }

  function now(colour) {
    const [, light, dark] = colour.match(/^light-dark\((.*\)|#\w+), (.*)\)$/);
    return matryoshka.theme.current() === "dark" ? dark : light;
  }

  // A dot of a colour, for legends.
  function swatch(colour) {
    const dot = matryoshka.dom.el("i", { class: "swatch", "aria-hidden": "true" });
    dot.style.background = colour;
    return dot;
  }

  matryoshka.colours = { NONE, ring, community, density, now, swatch };
})();
