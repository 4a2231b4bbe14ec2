// Where the data come from: the server's API (live), or the script files of an export (static), where fetch is blocked on file://.
// Everything else asks `matryoshka.source` and does not know which.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const live = document.querySelector('meta[name="matryoshka"]')?.content !== "static";
  const GONE = "The server does not answer. Is it still running?";

  // ── live ──────────────────────────────────────────────────────────────────────────────────────────────────────────

  async function request(path, options) {
    let response;
    try { response = await fetch(path, options); } catch { throw new Error(GONE); }
    const body = await response.json().catch(() => null);
    if (!response.ok) throw new Error(body?.error || `The server answered with status ${response.status}.`);
    if (body === null) throw new Error("The server's answer is not JSON.");
    return body;
  }

  function send(method, path, value) {
    return request(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
  }

  // ── static ────────────────────────────────────────────────────────────────────────────────────────────────────────

  const waiting = new Map();  // key → what to do with the text that its file will hand to `receive`

  function receive(key, base64) {
    waiting.get(key)?.(base64);
  }

  async function inflate(base64) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  function runScript(key) {
    return new Promise((resolve, reject) => {
      const path = `data/${key}.js`;
      const script = document.createElement("script");
      const end = () => { waiting.delete(key); script.remove(); };
      let text = null;
      waiting.set(key, (base64) => { text = base64; });
      script.onload = () => {
        end();
        if (text === null) reject(new Error(`${path} holds no data for “${key}”.`));
        else resolve(text);
      };
      script.onerror = () => { end(); reject(new Error(`${path} is missing from this export, or cannot be read.`)); };
      script.src = path;
      document.head.append(script);
    });
  }

  async function unpack(key) {
    const text = await runScript(key);
    try { return await inflate(text); } catch { throw new Error(`data/${key}.js is damaged.`); }
  }

  // ── both ──────────────────────────────────────────────────────────────────────────────────────────────────────────

  // The last `size` answers by key. A failure is forgotten, so that a retry asks again.
  function remembering(size, load) {
    const answers = new Map();
    return function ask(key) {
      let answer = answers.get(key);
      answers.delete(key);
      answer ??= load(key).catch((error) => { answers.delete(key); throw error; });
      answers.set(key, answer);  // last in the Map: most recently used
      if (answers.size > size) answers.delete(answers.keys().next().value);
      return answer;
    };
  }

  const path = (run) => `api/runs/${encodeURIComponent(run)}`;
  const runs = remembering(1, () => (live ? request("api/runs") : unpack("runs")));
  const overview = remembering(4, (run) => (live ? request(path(run)) : unpack(`${run}/overview`)));
  const file = remembering(live ? 200 : 6, (key) => (live ? request(key) : unpack(key)));

  const windows = remembering(100, unpack);

  // What was found of the run: `results`, `map`, `tree`, and `pairs/N` of the tree, in the files of an export `pairs-N`.
  const found = remembering(20, (key) => (live ? request(key) : unpack(key)));
  const of = (run, part) => found(live ? `${path(run)}/${part}` : `${run}/${part.replace("/", "-")}`);

  // In an export the tokens of a window stand once, in a file of windows: `firsts` has the lowest number in each file.
  async function withTokens(run, card, firsts) {
    const fileOf = (window) => firsts.findLastIndex((first) => first <= window);
    const examples = card.groups.flatMap((group) => group.examples);
    const files = new Map();
    for (const { window } of examples) files.set(fileOf(window), null);
    await Promise.all([...files.keys()].map(async (i) => files.set(i, await windows(`${run}/windows-${i}`))));
    for (const example of examples) example.tokens = files.get(fileOf(example.window))[example.window];
    return card;
  }

  async function feature(run, index) {
    const { columns, shard, window_files: firsts } = await overview(run);
    const count = columns.density.length;
    if (!(index < count)) throw new Error(`There is no feature ${index}: this run has features 0 to ${count - 1}.`);
    const card = live
      ? await file(`${path(run)}/features/${index}`)
      : await withTokens(run, (await file(`${run}/shard-${Math.floor(index / shard)}`))[index % shard], firsts);
    // What the reader has written may be newer than the card that was fetched ahead.
    return { ...card, label: columns.label[index], note: columns.note[index] };
  }

  async function save(run, index, words) {
    const saved = await send("PUT", `${path(run)}/features/${index}`, words);
    const { columns } = await overview(run);
    columns.label[index] = saved.label;
    columns.note[index] = saved.note;
    return saved;
  }

  matryoshka.receive = receive;
  matryoshka.source = {
    live, runs: () => runs(""), overview, feature, save,
    results: (run) => of(run, "results"), map: (run) => of(run, "map"), tree: (run) => of(run, "tree"),
    pairs: (run, number) => of(run, `pairs/${number}`),
    report: (run) => (live ? `${path(run)}/report` : `data/${run}/report.html`),
    tryText: (run, text) => send("POST", `${path(run)}/try`, { text }),
  };
})();
