// Review: what is said of each scan, kept by this browser, saved as one TSV.
const KEY = `lrls-review-${DATA.id}`;
const HEAD = ["case", "rating", "note", "correct", "exclude", "label_next"];
const TICKS = ["correct", "exclude", "label_next"];
let said = {}, keeps = true;
const numberOf = new Map(DATA.cases.map((each, number) => [each.case, number]));

function readKept() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) || "{}");
    for (const [name, one] of Object.entries(kept)) if (numberOf.has(name)) said[name] = tidied(one);
  } catch {
    keeps = false;
  }
}

function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify(said));
  } catch {
    keeps = false;
  }
  $("no-storage").hidden = keeps;
}

// A note in one line that no table takes for a formula or a quotation.
function tidyNote(text) {
  // eslint-disable-next-line no-control-regex
  const line = String(text ?? "").replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]+/g, " ");
  return line.replace(/"/g, "'").trim().slice(0, 500).replace(/^[=+\-@]+\s*/, "");
}

function tidied(one) {
  const rating = /^[1-5]$/.test(String(one?.rating ?? "")) ? String(one.rating) : "";
  const clean = { rating, note: tidyNote(one?.note) };
  for (const tick of TICKS) clean[tick] = one?.[tick] === true || one?.[tick] === "yes";
  return clean;
}

const isSaid = one => Boolean(one && (one.rating || one.note || TICKS.some(tick => one[tick])));

function tsv() {
  const rows = DATA.cases.filter(each => isSaid(said[each.case])).map(({ case: name }) => {
    const one = tidied(said[name]);
    return [name, one.rating, one.note, ...TICKS.map(tick => (one[tick] ? "yes" : ""))].join("\t");
  });
  return [HEAD.join("\t"), ...rows].join("\n") + "\n";
}

function fromTsv(text) {
  const [head, ...lines] = text.replace(/^\ufeff/, "").split(/\r?\n/);
  if (head !== HEAD.join("\t")) throw new Error("This file holds no ratings of a report.");
  let read = 0, strange = 0;
  for (const line of lines.filter(Boolean)) {
    const cells = line.split("\t");
    if (!numberOf.has(cells[0]) || cells.length !== HEAD.length) {
      strange++;
      continue;
    }
    said[cells[0]] = tidied(Object.fromEntries(HEAD.map((name, k) => [name, cells[k]])));
    read++;
  }
  return `${read} read${strange ? `, ${strange} of other scans left out` : ""}.`;
}

function save() {
  const link = document.createElement("a"), url = URL.createObjectURL(new Blob([tsv()], { type: "text/tab-separated-values" }));
  link.href = url;
  link.download = "ratings.tsv";
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  $("review-status").textContent = `Saved what was said of ${counted(DATA.cases.filter(each => isSaid(said[each.case])).length)}.`;
}

const counted = number => `${number} ${number === 1 ? "scan" : "scans"}`;

function sayOf(one) {
  const words = TICKS.filter(tick => one[tick]).map(tick => tick.replace("_", " "));
  return [one.rating && `rated ${one.rating}`, ...words, one.note && `“${one.note}”`].filter(Boolean).join(", ");
}

function showSaid() {
  const rows = DATA.cases.filter(each => isSaid(said[each.case])), body = $("said-table").tBodies[0];
  body.replaceChildren(...rows.map(({ case: name }) => {
    const one = said[name], row = document.createElement("tr");
    const link = document.createElement("a");
    link.href = `#case-${numberOf.get(name)}`;
    link.textContent = name;
    const cells = [one.rating, ...TICKS.map(tick => (one[tick] ? "yes" : "")), one.note];
    const head = document.createElement("th");
    head.scope = "row";
    head.append(link);
    row.append(head, ...cells.map(text => Object.assign(document.createElement("td"), { textContent: text })));
    return row;
  }));
  $("said-table").hidden = !rows.length;
  $("nothing-said").hidden = rows.length > 0;
  $("said-count").hidden = !rows.length;
  $("said-count").textContent = rows.length;
  for (const place of document.querySelectorAll("[data-said]")) {
    const one = said[DATA.cases[place.dataset.said].case];
    place.hidden = !isSaid(one);
    place.textContent = isSaid(one) ? sayOf(one) : "";
  }
}

function fillForm() {
  const one = tidied(said[DATA.cases[view.number].case]), form = $("review-form");
  form.reset();
  for (const radio of form.elements.rating) radio.checked = radio.value === one.rating;
  for (const tick of TICKS) form.elements[tick].checked = one[tick];
  form.elements.note.value = one.note;
}

function takeForm() {
  if (view.number < 0) return;
  const form = $("review-form"), ticks = Object.fromEntries(TICKS.map(tick => [tick, form.elements[tick].checked]));
  const one = tidied({ rating: form.elements.rating.value, note: form.elements.note.value, ...ticks });
  const name = DATA.cases[view.number].case;
  if (isSaid(one)) said[name] = one;
  else delete said[name];
  keep();
  showSaid();
}

function rate(value) {
  for (const radio of $("review-form").elements.rating) radio.checked = radio.value === value;
  takeForm();
}
