// The communities of a partition as a list: what the map shows in colours, for reading and for the keyboard.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { colours } = matryoshka;
  const { el, integer, plural, numbered } = matryoshka.dom;
  const MOST = 40;  // shown at first

  // What a community is called: as its most central feature.
  function nameOf({ central, number }, features) {
    return (central.length && features.nameOf(central[0])) || `community ${number}`;
  }

  function entry(community, features, href, pick) {
    const links = community.central.map((index) => el("li", {},
      el("a", { href: href(index) }, numbered(index, features.nameOf(index)))));
    return el("details", { class: "community", toggle: ({ target }) => pick(target.open ? community.number : null) },
      el("summary", {}, colours.swatch(colours.community(community.number)),
        el("span", { class: "community-name" }, el("bdi", {}, matryoshka.dom.reveal(nameOf(community, features)))),
        el("span", { class: "count" }, integer(community.size))),
      el("ul", { class: "found" }, links));
  }

  // pick(number | null): which community is opened
  function communities(all, features, href, pick) {
    const list = el("div", { class: "communities" });
    const draw = (most) => list.replaceChildren(...all.slice(0, most).map((community) => entry(community, features, href, pick)),
      ...(all.length > most ? [el("button", { type: "button", class: "quiet", click: () => draw(Infinity) },
        `Show all ${integer(all.length)}`)] : []));
    draw(MOST);
    return el("section", {}, el("h2", {}, plural(all.length, "community", "communities")),
      el("p", { class: "muted" }, "Each is called as its most central feature. Open one to see it on the map."), list);
  }

  matryoshka.communities = { list: communities, nameOf };
})();
