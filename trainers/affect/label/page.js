"use strict";
// Everything shown is set with textContent: a message is text, whatever it contains.

const $ = (id) => document.getElementById(id);
const token = location.hash.slice(1);
let view = null;
let form = { values: {}, tags: new Set(), focus: 0 };
let busy = false;

function element(kind, className, text) {
  const node = document.createElement(kind);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// ------------------------------------------------------------------ talking to the session

async function call(path, body) {
  const options = { headers: { Authorization: `Bearer ${token}` } };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(`/api/${path}`, options);
  const data = await response.json();
  if (!response.ok) throw Object.assign(new Error(data.error), { status: response.status });
  return data;
}

async function act(action, done, body = {}) {
  if (busy) return;
  busy = true;
  try {
    const at = view.task ? view.task.at : 0;
    load(await call(action, { at, ...body }));
    say(done);
  } catch (error) {
    say(error.message, true);
    if (error.status === 409) load(await call("state"));
    if (error.status === undefined) broken("The session has ended; start it again and open its new link.");
  } finally {
    busy = false;
  }
}

function broken(why) {
  $("work").hidden = $("empty").hidden = true;
  $("broken").hidden = false;
  $("why").textContent = why;
}

// ------------------------------------------------------------------ drawing

function say(message, bad = false) {
  $("message").textContent = message;
  $("message").classList.toggle("bad", bad);
}

function load(fresh) {
  view = fresh;
  const { task, progress } = view;
  const modes = { label: "Labelling", second: "Second rater", resolve: "Resolving" };
  $("mode").textContent = modes[progress.mode];
  $("rater").textContent = `${progress.rater} · guidelines ${progress.guideline}`;
  $("count").textContent = `${progress.done} done · ${progress.left} left`;
  $("bar").value = progress.done / Math.max(1, progress.done + progress.left);
  $("undo").disabled = !progress.can_undo;
  $("redo").disabled = !progress.can_redo;
  $("broken").hidden = true;
  $("work").hidden = !task;
  $("empty").hidden = Boolean(task);
  if (!task) return;
  fill(task.label);
  $("context").replaceChildren(...task.context.map((turn) => element("li", "", turn)));
  $("text").textContent = task.text;
  $("text").scrollTop = 0;
  $("skip").hidden = task.resolving;
  $("drop").hidden = !task.resolving;
  const keys = ["[", "]"];
  $("others").replaceChildren(...Object.entries(task.others).map(([who, label], index) => {
    const button = element("button");
    button.type = "button";
    if (keys[index]) button.append(element("kbd", "", keys[index]));
    button.append(` ${who}: ${spoken(label)}`);
    button.addEventListener("click", () => { fill(label); draw(); });
    return button;
  }));
  draw();
}

function fill(label) {
  form = { values: {}, tags: new Set(), focus: 0 };
  $("note").value = "";
  if (!label) return;
  for (const field of view.fields) form.values[field.name] = label[field.name];
  form.tags = new Set(label.tags);
  $("note").value = label.note || "";
}

const signed = (value, low) => (low < 0 && value >= 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(2);

function spoken(label) {
  const scores = view.fields.map((field) => `${field.name} ${signed(label[field.name], field.low)}`);
  return [...scores, label.tags.join(", ")].filter(Boolean).join(" · ");
}

function draw() {
  $("fields").replaceChildren(...view.fields.map(drawField));
  $("tags").replaceChildren(...view.tags.map(({ key, name }, index) => {
    const button = element("button", index >= 9 ? "flag" : "");
    button.type = "button";
    button.setAttribute("aria-pressed", form.tags.has(name));
    button.append(element("kbd", "", key), ` ${name}`);
    button.addEventListener("click", () => toggle(name));
    return button;
  }));
}

function drawField(field, index) {
  const value = form.values[field.name];
  const row = element("div", field.low < 0 ? "field axis" : "field");
  row.classList.toggle("focus", index === form.focus);
  row.dataset.field = field.name;
  const track = element("div", "track");
  const digits = field.low < 0 ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : [1, 2, 3, 4, 5, 6, 7, 8, 9, 0];
  for (const digit of digits) {
    const button = element("button");
    button.type = "button";
    button.tabIndex = -1;
    const to = valueOf(field, digit);
    button.title = `${field.name} ${signed(to, field.low)} (key ${digit})`;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", () => { form.focus = index; digitKey(digit); });
    track.append(button);
  }
  if (value !== undefined) {
    const dot = element("div", "dot");
    const count = digits.length;
    const start = valueOf(field, digits[0]);
    const step = valueOf(field, digits[1]) - start;
    const place = Math.max(-0.4, (value - start) / step);
    dot.style.left = `${((place + 0.5) / count) * 100}%`;
    track.append(dot);
  }
  row.append(
    element("span", "name", field.name),
    element("span", "end low", field.ends[0]),
    track,
    element("span", "end", field.ends[1]),
    element("output", "", value === undefined ? "·" : signed(value, field.low)),
  );
  row.addEventListener("click", (event) => {
    if (event.target.closest("button")) return;
    form.focus = index;
    draw();
  });
  return row;
}

// ------------------------------------------------------------------ keys

const valueOf = (field, digit) => (field.low < 0 ? (digit - 5) / 4 : digit ? digit / 10 : 1);

function digitKey(digit) {
  const field = view.fields[form.focus];
  if (field.low < 0 && digit === 0) return;
  form.values[field.name] = valueOf(field, digit);
  form.focus = Math.min(form.focus + 1, view.fields.length - 1);
  draw();
}

function nudge(steps) {
  const field = view.fields[form.focus];
  const start = form.values[field.name] ?? (field.low < 0 ? 0 : 0.5);
  const value = Math.min(1, Math.max(field.low, start + steps * 0.05));
  form.values[field.name] = Math.round(value * 100) / 100 + 0;
  draw();
}

function move(steps) {
  form.focus = Math.min(view.fields.length - 1, Math.max(0, form.focus + steps));
  draw();
}

function toggle(tag) {
  if (!form.tags.delete(tag)) form.tags.add(tag);
  draw();
}

function save() {
  const missing = view.fields.filter((field) => form.values[field.name] === undefined);
  if (missing.length) {
    form.focus = view.fields.indexOf(missing[0]);
    draw();
    say(`not saved: ${missing.map((field) => field.name).join(", ")} not set`, true);
    return;
  }
  const label = { ...form.values, tags: [...form.tags], note: $("note").value.trim() };
  act("save", `saved ${spoken(label)}`, { label });
}

const skip = () => act("skip", "skipped", { note: $("note").value.trim() });
const drop = () => act("drop", "dropped", { note: $("note").value.trim() });
const undo = () => act("undo", "taken back");
const redo = () => act("redo", "made again");

const KEYS = {
  ArrowLeft: () => nudge(-1), ArrowRight: () => nudge(1), "-": () => nudge(-1), "+": () => nudge(1),
  ArrowUp: () => move(-1), ArrowDown: () => move(1), Enter: save, m: () => $("note").focus(),
  k: () => { if (!view.task.resolving) skip(); }, x: () => { if (view.task.resolving) drop(); },
  "[": () => adopt(0), "]": () => adopt(1),
};

function adopt(index) {
  const labels = Object.values(view.task.others);
  if (!labels[index]) return;
  fill(labels[index]);
  draw();
}

document.addEventListener("keydown", (event) => {
  if (!view || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target === $("note")) {
    if (event.key === "Escape" || event.key === "Enter") {
      event.preventDefault();
      $("note").blur();
    }
    return;
  }
  if (event.key === "?") return void guidelines();
  if (event.key === "Escape" && !$("guidelines").hidden) return void guidelines();
  if ($("guidelines").contains(event.target) && /^(Arrow|Page|Home|End)/.test(event.key)) return;
  if (event.key === "z") return void undo();
  if (event.key === "y") return void redo();
  if (!view.task) return;
  // A focused button keeps Enter and Space for itself.
  if (event.target.closest("button") && (event.key === "Enter" || event.key === " ")) return;
  const tag = view.tags.find(({ key }) => key === event.key);
  if (KEYS[event.key]) KEYS[event.key]();
  else if (/^[0-9]$/.test(event.key)) digitKey(Number(event.key));
  else if (tag) toggle(tag.name);
  else return;
  event.preventDefault();
});

for (const [id, action] of Object.entries({ save, skip, drop, undo, redo, help: guidelines })) {
  $(id).addEventListener("click", () => { $(id).blur(); action(); });
}

// ------------------------------------------------------------------ guidelines: a little Markdown

async function guidelines() {
  const side = $("guidelines");
  if (!side.childElementCount) side.replaceChildren(...blocks((await call("guidelines")).text));
  side.hidden = !side.hidden;
  $("help").setAttribute("aria-expanded", !side.hidden);
  if (!side.hidden) side.focus();
}

function blocks(text) {
  const found = [];
  let lines = [];
  const flush = () => {
    if (lines.length) found.push(block(lines));
    lines = [];
  };
  for (const line of text.replace(/^---\n[^]*?\n---\n/, "").split("\n")) {
    const starts = /^(#+ |[0-9]+\. |- )/.test(line);
    const isRow = line.startsWith("|");
    if (!line.trim() || starts || (lines.length && isRow !== lines[0].startsWith("|"))) flush();
    if (line.trim()) lines.push(line);
    if (/^#/.test(line)) flush();
  }
  flush();
  return found;
}

function block(lines) {
  if (lines[0].startsWith("|")) return table(lines);
  const text = lines.map((line) => line.trim()).join(" ");
  const heading = /^(#+) (.*)/.exec(text);
  if (heading) return element(heading[1].length > 1 ? "h3" : "h2", "", heading[2]);
  return inline(element("p", /^([0-9]+\.|-) /.test(text) ? "item" : ""), text);
}

function table(lines) {
  const node = element("table");
  lines.filter((line) => !/^\|[-|: ]+$/.test(line)).forEach((line, index) => {
    const row = element("tr");
    for (const cell of line.split("|").slice(1, -1)) {
      row.append(inline(element(index ? "td" : "th"), cell.trim()));
    }
    node.append(row);
  });
  return node;
}

function inline(node, text) {
  for (const part of text.split(/(\*\*[^*]+\*\*|\*[^*]+\*|`[^`]+`)/)) {
    if (part.startsWith("**")) node.append(element("strong", "", part.slice(2, -2)));
    else if (part.startsWith("*") && part.length > 2) node.append(element("em", "", part.slice(1, -1)));
    else if (part.startsWith("`")) node.append(element("code", "", part.slice(1, -1)));
    else node.append(part);
  }
  return node;
}

call("state").then(load, (error) => broken(error.message));
