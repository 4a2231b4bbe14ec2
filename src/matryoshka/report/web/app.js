// The page: which view the address means, the masthead, errors and announcements. The views know nothing of each other.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, plain } = matryoshka.dom;
  const { parse, address } = matryoshka.query;
  const { source, theme } = matryoshka;
  const at = (id) => document.getElementById(id);
  const main = at("main");

  const lists = new Map();   // run → its list, kept so that going back is immediate
  const scrolls = loadScrolls();
  let view = null;           // what is shown
  let entry = null;          // the history entry it belongs to
  let latest = 0;            // the newest navigation: an older one that arrives late is dropped

  // ── what the views may ask for ────────────────────────────────────────────────────────────────────────────────────

  const app = {
    // Changes the address without making the view anew: the view has already done so itself.
    go(hash, { replace }) {
      keepScroll();
      history[replace ? "replaceState" : "pushState"]({ id: replace ? entry : (entry = newId()) }, "", hash);
      drawMasthead(parse(hash));
    },
    say(text) { at("announcer").textContent = text; },
    problem(error, retry = null) {
      return el("div", { class: "problem", role: "alert" }, el("p", {}, plain(error.message)),
        retry && el("button", { type: "button", click: retry }, "Try again"));
    },
  };

  // ── scroll positions, one a history entry ─────────────────────────────────────────────────────────────────────────

  function newId() {
    return Math.random().toString(36).slice(2);
  }

  function loadScrolls() {
    try { return new Map(JSON.parse(sessionStorage.getItem("matryoshka.scrolls") ?? "[]")); } catch { return new Map(); }
  }

  function keepScroll() {
    if (entry) scrolls.set(entry, scrollY);
  }

  function saveScrolls() {
    keepScroll();
    const recent = JSON.stringify([...scrolls].slice(-50));
    try { sessionStorage.setItem("matryoshka.scrolls", recent); } catch { /* then a reload starts at the top */ }
  }

  // ── views ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  async function listView(route) {
    const overview = await source.overview(route.run);
    if (!lists.has(route.run)) lists.set(route.run, new matryoshka.Browse(overview, app));
    const browse = lists.get(route.run);
    browse.show(route.query);
    if (view?.index !== undefined && view.run === route.run) browse.list.select(view.index);
    return browse;
  }

  const VIEWS = {
    overview: matryoshka.overviewView, list: listView, map: matryoshka.mapView, tree: matryoshka.treeView,
    feature: matryoshka.featureView, compare: matryoshka.compareView, try: matryoshka.tryView,
  };

  // An address without a run means the first one.
  async function routed() {
    const route = parse(location.hash);
    const { runs } = await source.runs();
    if (!runs.length) throw new Error("There is no run to show.");
    if (!route.run) route.run = route.other.run = runs[0].key;
    if (!runs.some((run) => run.key === route.run)) throw new Error(`There is no run “${route.run}” here.`);
    return route;
  }

  async function navigate() {
    const mine = (latest += 1);
    const again = history.state?.id !== undefined;  // back, forward or reload: there is a scroll position to return to
    keepScroll();
    const waiting = setTimeout(() => { if (mine === latest) main.classList.add("loading"); }, 150);
    let next, route;
    try {
      route = await routed();
      next = await VIEWS[route.view](route, app);
      if (route.view === "feature") Object.assign(next, { run: route.run, index: route.index });
    } catch (error) {
      next = failure(error);
    }
    clearTimeout(waiting);
    if (mine !== latest) return;
    main.classList.remove("loading");
    show(next, again);
    drawMasthead(route ?? parse(location.hash));
  }

  function failure(error) {
    const heading = el("h1", { tabindex: "-1" }, "This cannot be shown");
    const way = el("p", {}, el("a", { href: "#/" }, "To the first run"));
    return { element: el("div", { class: "failure" }, heading, app.problem(error, navigate), way), heading, title: "Error" };
  }

  function show(next, again) {
    const first = view === null;
    if (history.state?.id === undefined) history.replaceState({ id: newId() }, "");
    entry = history.state.id;
    if (next === view) return;  // the list under another query
    view = next;
    main.replaceChildren(next.element);
    document.title = `${next.title} · matryoshka`;
    next.shown?.();
    scrollTo(0, again ? scrolls.get(entry) ?? 0 : 0);
    next.shown && next.list?.render();
    if (!first && !main.contains(document.activeElement)) next.heading.focus({ preventScroll: true });
  }

  // ── masthead ──────────────────────────────────────────────────────────────────────────────────────────────────────

  async function drawMasthead(route) {
    const { runs } = await source.runs().catch(() => ({ runs: [] }));
    const run = route.run || runs[0]?.key || "";
    const select = at("run");
    const options = runs.map(({ key, name }) => el("option", { value: key }, plain(name)));
    if (select.options.length !== runs.length) select.replaceChildren(...options);
    select.value = run;
    at("run-choice").hidden = runs.length < 2;
    const link = (name, href, views) => el("a", { href, "aria-current": views.includes(route.view) ? "page" : null }, name);
    const { index } = route;
    at("views").replaceChildren(
      link("Overview", address.overview(run), ["overview"]),
      link("Features", address.list(run, route.query), ["list", "feature"]),
      link("Map", route.view === "map" ? location.hash : address.map(run), ["map"]),
      link("Tree", address.tree(run), ["tree"]),
      link("Compare", route.view === "compare" ? location.hash : address.compare(run, index, run, null), ["compare"]),
      ...(source.live ? [link("Try a text", route.view === "try" ? location.hash : address.try(run), ["try"])] : []));
  }

  function nameTheme() {
    const other = theme.current() === "dark" ? "Light" : "Dark";
    at("theme").textContent = other;
    at("theme").setAttribute("aria-label", `${other} theme`);
  }

  function themed() {
    nameTheme();
    view?.themed?.();
  }

  function switchTheme() {
    theme.toggle();
    themed();
  }

  function search() {
    const route = parse(location.hash);
    if (route.view !== "list") location.hash = address.list(route.run, route.query);
    const focus = (tries) => (at("search") ? at("search").focus() : tries && setTimeout(() => focus(tries - 1), 30));
    setTimeout(() => focus(30), 0);
  }

  // the same view of another run, where it has one
  function otherRun(key) {
    const { view } = parse(location.hash);
    location.hash = (address[{ list: "list", map: "map", tree: "tree", try: "try", feature: "list" }[view]]
      ?? address.overview)(key);
  }

  function go(view) {
    location.hash = address[view](at("run").value);
  }

  function help() {
    at("help").showModal();
  }

  function start() {
    history.scrollRestoration = "manual";
    matryoshka.keys.fillHelp(at("help"));
    matryoshka.keys.listen(() => view, {
      "/": search, t: switchTheme, "?": help,
      o: () => go("overview"), l: () => go("list"), m: () => go("map"), h: () => go("tree"),
    });
    nameTheme();
    theme.onSystemChange(themed);
    at("theme").addEventListener("click", switchTheme);
    at("help-button").addEventListener("click", help);
    at("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
    at("run").addEventListener("change", ({ target }) => otherRun(target.value));
    addEventListener("hashchange", navigate);
    addEventListener("pagehide", saveScrolls);
    navigate();
  }

  start();
})();
