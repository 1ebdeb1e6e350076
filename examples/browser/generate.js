// The page: what it is asked for, what it shows, and the state that a script reads.
//
//     ?prompt=TEXT&tokens=32&threads=1    generates at once where there is a prompt
//
// #output has data-state (loading, ready, running, done, failed) and, when done, the numbers as
// JSON in data-result.

import { Tokenizer } from "@huggingface/tokenizers";
import { loadDecoder, runtime } from "./decoder.js";

const folder = new URL("artefact/", location.href);
const asked = new URLSearchParams(location.search);
const [form, prompt, count, button, output, status] = [
  "form", "prompt", "tokens", "button", "output", "status",
].map((id) => document.getElementById(id));

async function json(name) {
  const answer = await fetch(new URL(name, folder));
  if (!answer.ok) throw new Error(`the artefact has no ${name}`);
  return answer.json();
}

function show(state, text) {
  output.dataset.state = state;
  status.textContent = text;
  button.disabled = state !== "ready" && state !== "done";
}

/** Lets the browser paint: the runtime computes on the page's own thread. */
function painted() {
  return new Promise((resolve) => setTimeout(resolve));
}

async function load() {
  const start = performance.now();
  const [config, ...files] = await Promise.all(
    ["config.json", "tokenizer.json", "tokenizer_config.json"].map(json),
  );
  const tokenizer = new Tokenizer(...files);
  const decoder = await loadDecoder(folder, Number(asked.get("threads") ?? 1));
  const stop = new Set([config.eos_token_id ?? []].flat());
  return { tokenizer, decoder, stop, loadSeconds: (performance.now() - start) / 1000 };
}

async function run({ tokenizer, decoder, stop, loadSeconds }) {
  const { ids } = tokenizer.encode(prompt.value);
  if (ids.length === 0) throw new Error("the prompt is empty: give at least one word to continue");
  show("running", "Reading the prompt");
  await painted();
  const given = tokenizer.decode(ids, { skip_special_tokens: true });
  const [tokens, seconds] = [[], []];
  output.textContent = prompt.value;
  const made = document.createElement("mark");
  output.append(made);
  for await (const step of decoder.generate(ids, Number(count.value), stop)) {
    tokens.push(step.token);
    seconds.push(step.seconds);
    const text = tokenizer.decode([...ids, ...tokens], { skip_special_tokens: true });
    // A character may take several tokens: the last one is shown when it is whole.
    made.textContent = text.slice(given.length).replace(/\ufffd+$/, "");
    status.textContent = `${tokens.length} tokens`;
    await painted();
  }
  const [prefillSeconds = 0, ...decode] = seconds;
  const decodeSeconds = decode.reduce((sum, value) => sum + value, 0);
  const tokensPerSecond = decode.length > 0 ? decode.length / decodeSeconds : null;
  output.dataset.result = JSON.stringify({
    promptTokens: ids, tokens, text: made.textContent, loadSeconds, prefillSeconds,
    tokensPerSecond, runtime, crossOriginIsolated,
  });
  const speed = tokensPerSecond === null ? "" : `, ${tokensPerSecond.toFixed(1)} per second`;
  show("done", `${tokens.length} tokens${speed}; first after ${prefillSeconds.toFixed(2)} s; ${runtime}`);
}

function fail(error) {
  output.dataset.error = String(error?.message ?? error);
  show("failed", output.dataset.error);
}

prompt.value = asked.get("prompt") ?? prompt.value;
count.value = asked.get("tokens") ?? count.value;
show("loading", "Loading the model");
try {
  const loaded = await load();
  show("ready", `Loaded in ${loaded.loadSeconds.toFixed(1)} s; ${runtime}`);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run(loaded).catch(fail);
  });
  if (asked.has("prompt")) await run(loaded);
} catch (error) {
  fail(error);
}
