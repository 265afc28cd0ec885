// The page: filters and order of the scans, opening and closing the viewer, keys.
const cards = [...document.querySelectorAll(".card")], viewer = $("viewer");
const shownBy = run => each => (DATA.scored ? each.dsc[run] : each.estimate[run]);
let listed = cards.map(card => Number(card.dataset.n)), back = null;

function filter() {
  const text = $("find").value.trim().toLowerCase(), flag = $("flag").value, order = $("order").value;
  const run = order === "name" || order === "flags" ? DATA.chief : Number(order), most = $("most").value === "" ? Infinity : Number($("most").value);
  const passes = each => {
    const value = shownBy(run)(each), told = isSaid(said[each.case]);
    if (text && !each.case.toLowerCase().includes(text)) return false;
    if (value !== null && value > most) return false;
    if (flag === "any") return each.flags.length > 0;
    if (flag === "said" || flag === "unsaid") return told === (flag === "said");
    return !flag || each.flags.some(one => one.split(":")[0] === flag);
  };
  const numbers = DATA.cases.map((_, number) => number);
  const value = number => shownBy(run)(DATA.cases[number]) ?? Infinity;
  numbers.sort((a, b) => order === "name"
    ? DATA.cases[a].case.localeCompare(DATA.cases[b].case, undefined, { numeric: true })
    : (order === "flags" && DATA.cases[b].flags.length - DATA.cases[a].flags.length) || value(a) - value(b) || a - b);
  const byNumber = new Map(cards.map(card => [Number(card.dataset.n), card]));
  listed = numbers.filter(number => passes(DATA.cases[number]));
  const kept = new Set(listed);
  for (const [number, card] of byNumber) card.hidden = !kept.has(number);
  $("cards").append(...numbers.map(number => byNumber.get(number)));
  $("none-shown").hidden = listed.length > 0;
  $("shown").textContent = listed.length === cards.length ? counted(cards.length) : `${listed.length} of ${counted(cards.length)}`;
}

async function open(number) {
  const each = DATA.cases[number];
  if (!each) return;
  if (!viewer.open) {
    back = document.activeElement;
    viewer.showModal();
  }
  view.number = number;
  view.scan = null;
  $("viewer-h").textContent = each.case;
  const place = listed.indexOf(number);
  $("viewer-place").textContent = place < 0 ? "" : `${place + 1} of ${listed.length}`;
  const values = DATA.scored ? each.dsc : each.estimate;
  $("viewer-dsc").textContent = DATA.runs
    .map((name, k) => (values[k] === null ? "" : `${name} ${DATA.scored ? "DSC" : "estimate"} ${values[k].toFixed(3)}`))
    .filter(Boolean).join(" · ");
  $("viewer-why").textContent = [each.why, each.flags.length ? `Flags: ${each.flags.join("; ")}.` : ""].filter(Boolean).join(" ");
  $("viewer-error").hidden = true;
  fillForm();
  $("viewer-h").focus({ preventScroll: true });
  try {
    const scan = await scanOf(number);
    if (view.number !== number) return;
    view.scan = scan;
    setUp(scan);
  } catch (error) {
    if (view.number !== number) return;
    $("viewer-error").textContent = error.message;
    $("viewer-error").hidden = false;
  }
}

function setUp(scan) {
  const choices = (id, names, none) => {
    const options = names.map((name, k) => new Option(name, k));
    $(id).replaceChildren(...(none ? [new Option(none, -1)] : []), ...options);
  };
  for (const side of ["a", "b"]) {
    choices(`${side}-image`, scan.images.map(image => image.name));
    choices(`${side}-label`, scan.labels.map(label => label.name), "no labels");
  }
  const presets = presetsOf(scan);
  $("presets").replaceChildren(...presets.map(preset => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = preset.name;
    button.onclick = () => take(preset);
    return button;
  }));
  for (const [plane, { axis }] of Object.entries(PLANES)) $(`${plane}-slice`).max = scan.shape[axis] - 1;
  fillStructures(scan);
  const coarse = scan.spacing.some((spacing, k) => spacing > 1.01 * scan.own[k]);
  $("viewer-note").textContent = [
    scan.note, `Shown at ${scan.spacing.map(s => s.toFixed(1)).join(" × ")} mm${coarse ? ", coarser than the grid" : ""}.`,
  ].filter(Boolean).join(" ");
  const kept = presets.find(preset => preset.name === view.preset) || presets[0];
  if (kept) take(kept);
  view.at = placeToStart();
  draw();
}

// Pairs worth flickering between: answer and truth, scan and warped atlas, two methods.
function presetsOf(scan) {
  const label = name => scan.labels.findIndex(each => each.name === name), truth = label("truth");
  const chief = label(DATA.runs[DATA.chief]), presets = [];
  const pair = (name, a, b) => presets.push({ name, A: a, B: b });
  if (chief >= 0 && truth >= 0) pair("answer / truth", { image: 0, label: chief }, { image: 0, label: truth });
  else if (chief >= 0) pair("answer / scan", { image: 0, label: chief }, { image: 0, label: -1 });
  scan.images.forEach((image, k) => {
    const shown = k && image.kind === "scan";
    if (shown) pair(`scan / ${image.name}`, { image: 0, label: -1 }, { image: k, label: -1 });
  });
  DATA.runs.forEach((name, k) => {
    const other = label(name);
    if (k !== DATA.chief && other >= 0 && chief >= 0)
      pair(`${DATA.runs[DATA.chief]} / ${name}`, { image: 0, label: chief }, { image: 0, label: other });
  });
  scan.images.forEach((image, k) => {
    if (image.kind === "change") pair(`scan / ${image.name}`, { image: 0, label: -1 }, { image: k, label: -1 });
  });
  return presets;
}

async function take(preset) {
  view.preset = preset.name;
  view.A = { ...preset.A };
  view.B = { ...preset.B };
  view.side = "A";
  for (const button of $("presets").children) button.setAttribute("aria-pressed", button.textContent === preset.name);
  for (const side of ["A", "B"]) {
    $(`${side.toLowerCase()}-image`).value = view[side].image;
    $(`${side.toLowerCase()}-label`).value = view[side].label;
  }
  await pictures();
}

async function pictures() {
  draw();
  const scan = view.scan;
  for (const side of ["A", "B"]) if (scan.images[view[side].image]) await greyOf(scan.images[view[side].image]);
  draw();
}

function cell(kind, text, name) {
  const made = document.createElement(kind);
  if (text instanceof Node) made.append(text);
  else made.textContent = text;
  if (name) made.className = name;
  if (kind === "th") made.scope = "col";
  return made;
}

function fillStructures(scan) {
  const several = DATA.runs.length > 1, number = (value, digits) => (value === null ? "" : value.toFixed(digits));
  const code = text => Object.assign(document.createElement("code"), { textContent: text });
  const span = (head, count, title = "") => Object.assign(head, { colSpan: count, title });
  const top = document.createElement("tr"), second = document.createElement("tr"), name = DATA.runs[DATA.chief];
  const ml = span(cell("th", "ml"), 1, `volume of the answer of ${name}`);
  top.append(cell("th", "structure"));
  if (DATA.scored && several) { // whose DSC, and whose distance and volume
    top.append(span(cell("th", "DSC"), DATA.runs.length), span(cell("th", code(name)), 2), cell("th", "truth"));
    second.append(cell("th", ""), ...DATA.runs.map(each => cell("th", code(each))));
  } else if (DATA.scored) top.append(cell("th", "DSC"));
  if (DATA.scored) {
    const hd95 = span(cell("th", "HD95 mm"), 1, `95 % of the surfaces of ${name} and truth are within it`);
    (several ? second : top).append(hd95, ml, span(cell("th", several ? "ml" : "truth ml"), 1, "volume of the truth"));
  } else top.append(ml);
  $("structures-head").replaceChildren(top, ...(second.children.length ? [second] : []));
  const order = scan.rows.map((_, k) => k), chief = row => row.runs[DATA.chief];
  order.sort((a, b) => (chief(scan.rows[a]).dsc ?? 2) - (chief(scan.rows[b]).dsc ?? 2) || a - b);
  $("structures").replaceChildren(...order.map(k => {
    const row = scan.rows[k], line = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row";
    head.append(swatch(row.structure));
    line.append(head);
    if (DATA.scored) {
      line.append(...row.runs.map(run => cell("td", number(run.dsc, 3))), cell("td", number(chief(row).hd95_mm, 1)));
      line.append(cell("td", number(chief(row).ml, 2)), cell("td", number(row.truth_ml, 2)));
    } else line.append(cell("td", number(chief(row).ml, 2)));
    return line;
  }));
}

// A box to show or hide a structure, and its name, which leads to it.
function swatch(name) {
  const index = DATA.structures.findIndex(each => each.name === name) + 1, box = document.createElement("span");
  if (index) {
    const tick = Object.assign(document.createElement("input"), { type: "checkbox", checked: !view.hidden.has(index) });
    tick.setAttribute("aria-label", `show ${name}`);
    tick.style.accentColor = DATA.structures[index - 1].color;
    tick.onchange = () => {
      view.hidden[tick.checked ? "delete" : "add"](index);
      draw();
    };
    const mark = document.createElement("i");
    mark.className = "swatch";
    mark.style.background = DATA.structures[index - 1].color;
    const button = Object.assign(document.createElement("button"), { type: "button", className: "go", textContent: name });
    button.title = "go to this structure";
    button.onclick = () => goToStructure(index);
    box.append(tick, mark, button);
  } else box.textContent = name;
  return box;
}

function step(by) {
  const place = listed.indexOf(view.number), next = listed[place + by];
  if (next !== undefined) location.replace(`#case-${next}`);
}

function close() {
  flickByItself(false);
  view.number = -1;
  view.scan = null;
  if (viewer.open) viewer.close();
  if (location.hash.startsWith("#case-")) history.replaceState(null, "", "#scans");
  back?.focus?.({ preventScroll: true });
}

function follow() {
  const found = /^#case-(\d+)$/.exec(location.hash);
  if (found) open(Number(found[1]));
  else if (viewer.open) close();
}

function enlarge(plane) {
  view.large = plane && view.large !== plane ? plane : "";
  $("planes").dataset.large = view.large;
  for (const figure of document.querySelectorAll(".plane")) figure.classList.toggle("is-large", figure.dataset.plane === view.large);
  draw();
}

const KEYS = {
  " ": flick,
  f: () => flickByItself(!view.timer),
  o: () => tick("outlines"),
  d: () => tick("differences"),
  j: () => step(1),
  k: () => step(-1),
  z: () => enlarge(view.plane),
  a: () => focusPlane("axial"),
  c: () => focusPlane("coronal"),
  s: () => focusPlane("sagittal"),
  "[": () => fill(-0.1),
  "]": () => fill(0.1),
  ArrowUp: () => move(PLANES[view.plane].axis, 1),
  ArrowDown: () => move(PLANES[view.plane].axis, -1),
  PageUp: () => move(PLANES[view.plane].axis, 5),
  PageDown: () => move(PLANES[view.plane].axis, -5),
};

function tick(id) {
  $(id).checked = !$(id).checked;
  draw();
}

function fill(by) {
  $("fill").value = Number($("fill").value) + by;
  draw();
}

function focusPlane(plane) {
  view.plane = plane;
  $(plane).focus();
  if (view.large) enlarge(plane);
}

viewer.addEventListener("keydown", event => {
  const typed = event.target.closest("textarea, select, input[type=search]");
  if (typed || event.ctrlKey || event.metaKey || event.altKey) return;
  const form = event.target.closest("input, button"), moves = event.key.startsWith("Arrow") || event.key.startsWith("Page");
  if (form && (moves || event.key === " ")) return; // which are that control's own keys
  if (/^[1-5]$/.test(event.key)) rate(event.key);
  else if (KEYS[event.key] && view.scan) KEYS[event.key]();
  else return;
  event.preventDefault();
});
viewer.addEventListener("cancel", event => {
  event.preventDefault();
  close();
});

for (const [plane, { axis, down, across, flip }] of Object.entries(PLANES)) {
  const canvas = $(plane);
  const point = event => {
    if (!view.scan) return;
    const room = canvas.getBoundingClientRect(), { width, height } = sizes(plane);
    const scale = Math.min(room.width / width, room.height / height);
    const x = (event.clientX - room.left - (room.width - width * scale) / 2) / (width * scale);
    const y = (event.clientY - room.top - (room.height - height * scale) / 2) / (height * scale);
    const inside = (part, n) => Math.max(0, Math.min(n - 1, Math.floor(part * n)));
    view.at[across] = inside(x, view.scan.shape[across]);
    view.at[down] = inside(flip ? 1 - y : y, view.scan.shape[down]);
    draw();
  };
  canvas.addEventListener("focus", () => { view.plane = plane; });
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    view.dragging = plane;
    view.plane = plane;
    point(event);
  });
  canvas.addEventListener("pointermove", event => { if (view.dragging === plane) point(event); });
  canvas.addEventListener("pointerup", () => { view.dragging = null; });
  canvas.addEventListener("dblclick", () => enlarge(plane));
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    if (view.scan) move(axis, event.deltaY < 0 ? 1 : -1);
  }, { passive: false });
  $(`${plane}-slice`).addEventListener("input", event => {
    if (!view.scan) return;
    view.at[axis] = Number(event.target.value);
    draw();
  });
}

for (const side of ["A", "B"]) {
  for (const what of ["image", "label"]) {
    $(`${side.toLowerCase()}-${what}`).addEventListener("change", event => {
      view[side][what] = Number(event.target.value);
      view.side = side;
      if (view.scan) pictures();
    });
  }
}
for (const id of ["outlines", "other", "differences", "fill", "bright", "contrast"]) $(id).addEventListener("input", draw);
for (const id of ["find", "flag", "most", "order"]) $(id).addEventListener("input", filter);
$("filters").addEventListener("submit", event => event.preventDefault());
$("flick").onclick = flick;
$("auto").onchange = event => flickByItself(event.target.checked);
$("next").onclick = () => step(1);
$("previous").onclick = () => step(-1);
$("close").onclick = close;
$("help").onclick = () => {
  $("keys").hidden = !$("keys").hidden;
  $("help").setAttribute("aria-expanded", !$("keys").hidden);
  draw();
};
$("review-form").addEventListener("input", takeForm);
$("review-form").addEventListener("submit", event => event.preventDefault());
$("unrate").onclick = () => rate("");
$("save").onclick = save;
$("load").onchange = async event => {
  const [file] = event.target.files;
  if (!file) return;
  try {
    $("review-status").textContent = fromTsv(await file.text());
    keep();
    showSaid();
  } catch (error) {
    $("review-status").textContent = error.message;
  }
  event.target.value = "";
};
$("clear").onclick = () => {
  if (!confirm("Forget every rating and note of this report?")) return;
  said = {};
  keep();
  showSaid();
};
for (const dot of document.querySelectorAll("[data-case]:not(a)")) {
  dot.addEventListener("click", () => { location.hash = `#case-${dot.dataset.case}`; });
}
new ResizeObserver(draw).observe($("planes"));
addEventListener("hashchange", follow);
readKept();
$("no-storage").hidden = keeps;
showSaid();
follow();
