// The viewer: three planes through one voxel, sides A and B that take turns.
const $ = id => document.getElementById(id);
const PLANES = {
  axial: { axis: 0, down: 1, across: 2, flip: false, letters: "RLAP" },
  coronal: { axis: 1, down: 0, across: 2, flip: true, letters: "RLSI" },
  sagittal: { axis: 2, down: 0, across: 1, flip: true, letters: "APSI" },
};
const COLORS = DATA.structures.map(s => [1, 3, 5].map(k => parseInt(s.color.slice(k, k + 2), 16)));
const view = {
  number: -1, scan: null, at: [0, 0, 0], side: "A", A: { image: 0, label: -1 }, B: { image: 0, label: -1 },
  hidden: new Set(), plane: "axial", large: false, timer: 0, dragging: null,
};

const strides = shape => [shape[1] * shape[2], shape[2], 1];

// One slice of a volume: values, rows and columns, the head at the top.
function sliceOf(values, shape, plane, place) {
  const { axis, down, across, flip } = PLANES[plane], step = strides(shape);
  const rows = shape[down], columns = shape[across], slice = new values.constructor(rows * columns);
  for (let r = 0, k = 0; r < rows; r++) {
    let from = place * step[axis] + (flip ? rows - 1 - r : r) * step[down];
    for (let c = 0; c < columns; c++, from += step[across]) slice[k++] = values[from];
  }
  return { values: slice, rows, columns };
}

function sizes(plane) {
  const { down, across } = PLANES[plane], { shape, spacing } = view.scan;
  return { width: shape[across] * spacing[across], height: shape[down] * spacing[down] };
}

function paint(slice, colour) {
  const small = document.createElement("canvas");
  small.width = slice.columns;
  small.height = slice.rows;
  const pixels = new ImageData(slice.columns, slice.rows);
  for (let k = 0; k < slice.values.length; k++) colour(slice.values[k], pixels.data, 4 * k, k);
  small.getContext("2d").putImageData(pixels, 0, 0);
  return small;
}

function grey(value, data, at) {
  const level = 255 * ((value / 255 - 0.5) * Number($("contrast").value) + 0.5 + Number($("bright").value));
  data[at] = data[at + 1] = data[at + 2] = level;
  data[at + 3] = 255;
}

// Blue: the atlas shrinks there, red: it grows, yellow: it folds.
function change(value, data, at) {
  if (value === 0) {
    data.set([255, 225, 0, 255], at);
    return;
  }
  const much = (value - 128) / 127, fade = 1 - Math.min(1, 1.6 * Math.abs(much));
  data.set(much > 0 ? [245, 245 * fade, 245 * fade, 255] : [245 * fade, 245 * fade, 245, 255], at);
}

function outline(context, slice, across, down, colour) {
  const { values, rows, columns } = slice, paths = new Map();
  const pathOf = value => {
    if (!paths.has(value)) paths.set(value, new Path2D());
    return paths.get(value);
  };
  const line = (value, x1, y1, x2, y2) => {
    if (!value || view.hidden.has(value)) return;
    const path = pathOf(value);
    path.moveTo(x1 * across, y1 * down);
    path.lineTo(x2 * across, y2 * down);
  };
  for (let r = 0; r <= rows; r++) {
    for (let c = 0; c <= columns; c++) {
      const here = r < rows && c < columns ? values[r * columns + c] : 0;
      const left = r < rows && c ? values[r * columns + c - 1] : 0;
      const above = c < columns && r ? values[(r - 1) * columns + c] : 0;
      if (r < rows && here !== left) {
        line(here, c, r, c, r + 1);
        line(left, c, r, c, r + 1);
      }
      if (c < columns && here !== above) {
        line(here, c, r, c + 1, r);
        line(above, c, r, c + 1, r);
      }
    }
  }
  for (const [value, path] of paths) {
    context.strokeStyle = colour || DATA.structures[value - 1].color;
    context.stroke(path);
  }
}

function drawPlane(plane) {
  const canvas = $(plane), scan = view.scan, side = view[view.side], other = view[view.side === "A" ? "B" : "A"];
  const ratio = window.devicePixelRatio || 1, room = canvas.getBoundingClientRect(), { width, height } = sizes(plane);
  if (!room.width) return;
  canvas.width = Math.round(room.width * ratio);
  canvas.height = Math.round(room.height * ratio);
  const scale = Math.min(canvas.width / width, canvas.height / height);
  const wide = width * scale, high = height * scale, x = (canvas.width - wide) / 2, y = (canvas.height - high) / 2;
  const context = canvas.getContext("2d"), place = view.at[PLANES[plane].axis];
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.setTransform(1, 0, 0, 1, x, y);
  const image = scan.images[side.image];
  if (image?.grey) {
    const axis = PLANES[plane].axis;
    const there = Math.min(image.shape[axis] - 1, Math.floor((place + 0.5) * image.shape[axis] / scan.shape[axis]));
    context.imageSmoothingEnabled = image.kind === "scan" || !image.folds;
    context.imageSmoothingQuality = "high";
    const slice = sliceOf(image.grey, image.shape, plane, there);
    context.drawImage(paint(slice, image.kind === "scan" ? grey : change), 0, 0, wide, high);
  }
  const own = scan.labels[side.label] && sliceOf(scan.labels[side.label].classes, scan.shape, plane, place);
  const second = scan.labels[other.label] && sliceOf(scan.labels[other.label].classes, scan.shape, plane, place);
  context.imageSmoothingEnabled = false;
  const fill = Number($("fill").value);
  if (own && fill > 0) {
    const painted = paint(own, (value, data, at) => {
      if (value && !view.hidden.has(value)) data.set([...COLORS[value - 1], 255 * fill], at);
    });
    context.drawImage(painted, 0, 0, wide, high);
  }
  if (own && second && $("differences").checked) {
    const painted = paint(own, (value, data, at, k) => {
      const differs = value !== second.values[k] && !(view.hidden.has(value) && view.hidden.has(second.values[k]));
      if (differs) data.set([255, 0, 200, 190], at);
    });
    context.drawImage(painted, 0, 0, wide, high);
  }
  const any = own || second;
  context.lineJoin = "round";
  if (any && second && $("other").checked && side.label !== other.label) {
    context.lineWidth = 1.4 * ratio;
    outline(context, second, wide / any.columns, high / any.rows, "#ffffff");
  }
  if (own && $("outlines").checked) {
    context.lineWidth = 1.8 * ratio;
    outline(context, own, wide / any.columns, high / any.rows, null);
  }
  crosshair(context, plane, wide, high, ratio);
  context.setTransform(1, 0, 0, 1, 0, 0);
  letters(context, canvas, PLANES[plane].letters, ratio);
  const number = `${place + 1} of ${scan.shape[PLANES[plane].axis]}`;
  $(`${plane}-slice`).value = place;
  $(`${plane}-number`).textContent = number;
  canvas.setAttribute("aria-label", `${plane} slice ${number}, ${sideText(view.side)}`);
}

function crosshair(context, plane, wide, high, ratio) {
  const { down, across, flip } = PLANES[plane], { shape } = view.scan;
  const x = (view.at[across] + 0.5) / shape[across] * wide, part = (view.at[down] + 0.5) / shape[down];
  const y = (flip ? 1 - part : part) * high, gap = 9 * ratio;
  context.strokeStyle = "rgba(255,255,255,.4)";
  context.lineWidth = ratio;
  context.beginPath();
  for (const [x1, y1, x2, y2] of [[x, 0, x, y - gap], [x, y + gap, x, high], [0, y, x - gap, y], [x + gap, y, wide, y]]) {
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
  }
  context.stroke();
}

function letters(context, canvas, text, ratio) {
  context.font = `${12 * ratio}px system-ui, sans-serif`;
  context.fillStyle = "#fff";
  context.strokeStyle = "#000"; // so that they are read on white, too
  context.lineWidth = 3 * ratio;
  context.lineJoin = "round";
  context.textAlign = "center";
  context.textBaseline = "middle";
  const edge = 11 * ratio, { width, height } = canvas;
  const places = [[edge, height / 2], [width - edge, height / 2], [width / 2, edge], [width / 2, height - edge]];
  places.forEach(([x, y], k) => {
    context.strokeText(text[k], x, y);
    context.fillText(text[k], x, y);
  });
}

function sideText(name) {
  const side = view[name], image = view.scan.images[side.image], label = view.scan.labels[side.label];
  const text = `${name}: ${image ? image.name : "no image"}${label ? `, ${label.name}` : ""}`;
  if (image?.kind === "change") return `${text} (red: the atlas grows, blue: it shrinks, yellow: folds)`;
  const other = view.scan.labels[view[name === "A" ? "B" : "A"].label];
  return other && other !== label && $("other").checked ? `${text} · white: ${other.name}` : text;
}

let drawing = 0;
function draw() {
  if (!drawing) drawing = requestAnimationFrame(() => {
    drawing = 0;
    if (!view.scan || !$("viewer").open) return;
    const text = sideText(view.side);
    if ($("side").textContent !== text) $("side").textContent = text;
    $("side").className = `side side-${view.side}`;
    $("scale").hidden = view.scan.images[view[view.side].image]?.kind !== "change";
    $("flick").textContent = `Show ${view.side === "A" ? "B" : "A"}`;
    Object.keys(PLANES).forEach(drawPlane);
  });
}

function flick() {
  view.side = view.side === "A" ? "B" : "A";
  draw();
}

function flickByItself(on) {
  clearInterval(view.timer);
  view.timer = on ? setInterval(flick, 600) : 0;
  $("auto").checked = on;
}

function move(axis, by) {
  const last = view.scan.shape[axis] - 1;
  view.at[axis] = Math.max(0, Math.min(last, view.at[axis] + by));
  draw();
}

// A voxel that passes a test, in the axial slice and its row with most of them; null: none passes.
function placeOf(test) {
  const { shape } = view.scan, [depth, height, width] = shape, each = height * width;
  const most = counts => counts.indexOf(Math.max(...counts));
  const slices = new Uint32Array(depth);
  for (let k = 0; k < depth * each; k++) if (test(k)) slices[Math.floor(k / each)]++;
  const d = most(slices), rows = new Uint32Array(height);
  if (!slices[d]) return null;
  for (let k = 0; k < each; k++) if (test(d * each + k)) rows[Math.floor(k / width)]++;
  const h = most(rows), places = [];
  for (let w = 0; w < width; w++) if (test(d * each + h * width + w)) places.push(w);
  return [d, h, places[places.length >> 1]];
}

function placeToStart() {
  const a = view.scan.labels[view.A.label]?.classes, b = view.scan.labels[view.B.label]?.classes;
  return (a && b && placeOf(k => a[k] !== b[k])) || (a && placeOf(k => a[k] > 0)) || view.scan.shape.map(n => n >> 1);
}

function goToStructure(index) {
  const labels = [view.scan.labels[view.A.label], view.scan.labels[view.B.label]].filter(Boolean);
  for (const { classes } of labels) {
    const place = placeOf(k => classes[k] === index);
    if (place) {
      view.at = place;
      return draw();
    }
  }
}
