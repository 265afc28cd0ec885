// Volumes of a scan: its script is added when it is opened, and says lrlsCase(number, content).
const DATA = JSON.parse(document.getElementById("data").textContent);
const waiting = new Map(), opened = new Map();
const MOST_OPENED = 4; // scans whose volumes stay in memory

window.lrlsCase = (number, content) => waiting.get(number)?.(content);

function scanOf(number) {
  if (!opened.has(number)) {
    const promise = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      waiting.set(number, resolve);
      script.src = `cases/${number}.js`;
      script.onload = () => script.remove();
      script.onerror = () => {
        script.remove();
        reject(new Error(`cases/${number}.js cannot be read: keep the folder of the report together.`));
      };
      document.head.append(script);
    }).then(decoded);
    promise.catch(() => opened.delete(number));
    opened.set(number, promise);
    if (opened.size > MOST_OPENED) opened.delete(opened.keys().next().value);
  }
  return opened.get(number);
}

async function decoded(content) {
  if (typeof DecompressionStream === "undefined") throw new Error("This browser is too old for the viewer.");
  let before = null;
  for (const label of content.labels) {
    const bytes = await inflated(label.data);
    const classes = label.bytes === 2 ? new Uint16Array(bytes) : new Uint8Array(bytes);
    if (label.after) for (let k = 0; k < classes.length; k++) classes[k] ^= before[k];
    label.classes = before = classes;
    label.data = null;
  }
  await greyOf(content.images[0]);
  return content;
}

async function inflated(base64) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

// Grey values of a sheet, slice by slice; they are kept with it.
async function greyOf(image) {
  if (image.grey) return image;
  const picture = new Image();
  picture.src = image.url;
  await picture.decode();
  const [depth, height, width] = image.shape, sheet = document.createElement("canvas");
  sheet.width = picture.naturalWidth;
  sheet.height = picture.naturalHeight;
  const context = sheet.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const grey = new Uint8Array(depth * height * width);
  for (let d = 0, k = 0; d < depth; d++) {
    const left = (d % image.columns) * width, top = Math.floor(d / image.columns) * height;
    const pixels = context.getImageData(left, top, width, height).data;
    for (let p = 0; p < pixels.length; p += 4) grey[k++] = pixels[p];
  }
  image.grey = grey;
  image.url = null;
  return image;
}
