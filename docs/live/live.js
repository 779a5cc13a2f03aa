// Translates pictures in the browser: squares of pixels to the network's input, one call, and back.

import * as ort from "./lib/ort.wasm.bundle.min.mjs";

const EXAMPLES = ["sample_1", "sample_2", "sample_3", "sample_4", "sample_5", "sample_6", "sample_7", "chelsea"];
const at = (id) => document.getElementById(id);

ort.env.wasm.wasmPaths = { wasm: new URL("lib/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = 1; // More would need headers that a plain server does not send.

let session, side, camera = null;

function say(text, error = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", error);
}

/** The middle square of a picture, on white, as the pixels of the source's canvas. */
function square(picture, width, height) {
  const size = Math.min(width, height), context = at("source").getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (width - size) / 2, (height - size) / 2, size, size, 0, 0, side, side);
  return context.getImageData(0, 0, side, side).data;
}

/** RGBA, 0..255, row by row => float32 in [-1, 1], channel by channel. */
function toNetwork(pixels) {
  const count = side * side, values = new Float32Array(3 * count);
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) values[c * count + i] = pixels[4 * i + c] / 127.5 - 1;
  }
  return new ort.Tensor("float32", values, [1, 3, side, side]);
}

/** The inverse of `toNetwork`, to the nearest of 256 levels. */
function toPixels(values) {
  const count = side * side, image = new ImageData(side, side); // Rounds and clamps what it is given.
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = (values[c * count + i] + 1) * 127.5;
    image.data[4 * i + 3] = 255;
  }
  return image;
}

async function translate(picture, width, height) {
  const began = performance.now();
  const { translations } = await session.run({ images: toNetwork(square(picture, width, height)) });
  at("made").getContext("2d").putImageData(toPixels(translations.data), 0, 0);
  document.body.dataset.made = Number(document.body.dataset.made ?? 0) + 1;
  return performance.now() - began;
}

async function show(blob) {
  stopCamera();
  try {
    const picture = await createImageBitmap(blob);
    const took = await translate(picture, picture.width, picture.height);
    say(`${took.toFixed(0)} ms`);
  } catch (error) {
    say(`This cannot be shown as a picture: ${error.message}`, true);
  }
}

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  at("camera").textContent = "Start the camera";
}

async function toggleCamera() {
  if (camera) return stopCamera();
  const video = at("video");
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
    video.srcObject = camera;
    await video.play();
  } catch (error) {
    stopCamera();
    return say(`There is no camera: ${error.message}`, true);
  }
  at("camera").textContent = "Stop the camera";
  const mine = camera;
  while (camera === mine) {
    const took = await translate(video, video.videoWidth, video.videoHeight);
    say(`${took.toFixed(0)} ms a picture`);
    await new Promise(requestAnimationFrame);
  }
}

function takeDrops() {
  const area = at("pictures");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // Else the browser would leave the page for the picture.
      area.classList.toggle("over", kind === "dragover");
    });
  }
  document.addEventListener("drop", (event) => event.dataTransfer.files[0] && show(event.dataTransfer.files[0]));
}

function addExamples() {
  for (const name of EXAMPLES) {
    const button = document.createElement("button"), image = new Image();
    image.src = `../demo/cats/${name}.png`;
    image.alt = "a cat";
    button.append(image);
    button.addEventListener("click", async () => show(await (await fetch(image.src)).blob()));
    at("examples").append(button);
  }
}

try {
  session = await ort.InferenceSession.create(new URL("student.onnx", import.meta.url).href);
  side = session.inputMetadata[0].shape[3];
  for (const id of ["source", "made"]) at(id).width = at(id).height = side;
  addExamples();
  takeDrops();
  at("file").addEventListener("change", (event) => event.target.files[0] && show(event.target.files[0]));
  at("camera").addEventListener("click", toggleCamera);
  say("Choose a picture, drop one, or start the camera.");
  document.body.dataset.ready = "";
} catch (error) {
  say(`The network cannot be loaded: ${error.message}`, true);
}
