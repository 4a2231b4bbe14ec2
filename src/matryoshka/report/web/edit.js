// The reader's own words on a feature's card: the label, edited in place, and the note, saved when one leaves it. Live only.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el } = matryoshka.dom;

  // Saves one field; says in `state` how it went. Resolves to whether it is saved.
  async function store(state, save) {
    state.className = "state";
    state.textContent = "saving…";
    try {
      await save();
      state.textContent = "saved";
      return true;
    } catch (error) {
      state.classList.add("failed");
      state.textContent = `not saved: ${error.message}`;
      return false;
    }
  }

  // Puts a form in the place of the title; `done(label | null)` takes it away again (null: as it was).
  function labelForm(card, save, done) {
    const state = el("span", { class: "state", role: "status" });
    const input = el("input", { type: "text", name: "label", "aria-label": "Label", value: card.label,
      placeholder: "what it responds to", autocomplete: "off", maxlength: 500,
      keydown: (event) => { if (event.key === "Escape") { event.preventDefault(); done(null); } } });
    const submit = async (event) => {
      event.preventDefault();
      const label = input.value.trim();
      if (label === card.label) return done(null);
      if (await store(state, () => save({ label, note: card.note }))) done(label);
    };
    const form = el("form", { class: "label-form", submit }, input, el("button", { type: "submit" }, "Save"),
      el("button", { type: "button", class: "quiet", click: () => done(null) }, "Cancel"), state);
    return { form, input };
  }

  function noteField(card, save) {
    const state = el("span", { class: "state", role: "status" });
    let saved = card.note;
    const keep = async () => {
      const note = area.value;
      if (note !== saved && await store(state, () => save({ label: card.label, note }))) { saved = note; card.note = note; }
    };
    const fit = () => { area.style.height = "auto"; area.style.height = `${area.scrollHeight + 2}px`; };
    const area = el("textarea", { "aria-label": "Note", rows: 1, placeholder: "Add a note", blur: keep,
      input: () => { state.textContent = ""; fit(); },
      keydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) keep();
        if (event.key === "Escape") { event.preventDefault(); area.blur(); }
      } });
    area.value = card.note;
    requestAnimationFrame(fit);
    return el("div", { class: "note-field" }, area, state);
  }

  // element: the card's DOM. Returns {edit}, which opens the label's form. `renamed(label)` makes the title anew.
  function makeEditable(element, card, save, renamed) {
    const title = element.querySelector(".card-title");
    const button = el("button", { type: "button", class: "quiet small edit", "aria-keyshortcuts": "e", click: () => edit() },
      card.label ? "Edit label" : "Add a label");
    const from = element.querySelector(".from");
    from.append(" ", button);
    element.querySelector(".note")?.remove();
    element.querySelector(".naming").append(noteField(card, save));
    let open = null;

    function edit() {
      if (open) return open.input.focus();
      open = labelForm(card, save, (label) => {
        open.form.remove();
        open = null;
        title.classList.remove("editing");
        if (label === null) return button.focus();
        card.label = label;
        renamed(label);
      });
      title.classList.add("editing");
      title.after(open.form);
      open.input.focus();
      open.input.select();
    }
    return { edit };
  }

  matryoshka.makeEditable = makeEditable;
})();
