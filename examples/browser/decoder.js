// A causal language model in ONNX Runtime's WebAssembly build, token by token.

import * as ort from "onnxruntime-web";

const PAST = "past_key_values.";
const PRESENT = "present.";

export const runtime = `onnxruntime-web ${ort.env.versions.web} WASM`;

/** The artefact's model, loaded.
 *
 * @param {URL} folder - the artefact's, with a slash at the end.
 * @param {number} threads - more than one needs a cross-origin isolated page.
 */
export async function loadDecoder(folder, threads) {
  ort.env.wasm.numThreads = threads;
  // With it, products of a graph of standard operators take as long as in floating point; without
  // it they are fused into a kernel that is many times slower here. Other graphs have none.
  const extra = { session: { disable_quant_qdq: "1" } };
  const options = { executionProviders: ["wasm"], extra };
  const data = new URL("model.onnx_data", folder);
  if ((await fetch(data, { method: "HEAD" })).ok) {
    options.externalData = [{ path: "model.onnx_data", data: data.href }];
  }
  return new Decoder(await ort.InferenceSession.create(new URL("model.onnx", folder).href, options));
}

class Decoder {
  constructor(session) {
    this.session = session;
    this.past = session.inputMetadata.filter((input) => input.name.startsWith(PAST));
  }

  /** Greedy tokens after a prompt, one at a time, until `count` are made or one of `stop` is.
   *
   * @param {number[]} prompt - token ids, at least one.
   * @param {Set<number>} stop - tokens that end the text; they are not yielded.
   * @yields {{token: number, seconds: number}} the time is that of the forward pass alone.
   */
  async *generate(prompt, count, stop) {
    let [tokens, cache, length] = [prompt, this.emptyCache(), 0];
    for (let made = 0; made < count; made += 1) {
      const start = performance.now();
      const output = await this.session.run(this.feeds(tokens, cache, length));
      const token = lastArgMax(output.logits);
      const seconds = (performance.now() - start) / 1000;
      if (stop.has(token)) return;
      yield { token, seconds };
      length += tokens.length;
      tokens = [token];
      cache = Object.fromEntries(
        this.past.map(({ name }) => [name, output[name.replace(PAST, PRESENT)]]),
      );
    }
  }

  /** Keys and values of no token: (1, heads, 0, width of a head) each. */
  emptyCache() {
    return Object.fromEntries(
      this.past.map(({ name, type, shape }) => {
        const values = type === "float16" ? new Float16Array(0) : new Float32Array(0);
        return [name, new ort.Tensor(type, values, [1, shape[1], 0, shape[3]])];
      }),
    );
  }

  feeds(tokens, cache, length) {
    const total = length + tokens.length;
    const found = {
      input_ids: int64(tokens),
      attention_mask: int64(Array(total).fill(1)),
      position_ids: int64(tokens.map((_, index) => length + index)),
    };
    // Most graphs count positions themselves and have no input for them.
    const { inputNames } = this.session;
    const wanted = Object.entries(found).filter(([name]) => inputNames.includes(name));
    return { ...Object.fromEntries(wanted), ...cache };
  }
}

function int64(values) {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
}

/** The likeliest token at the last position of logits (1, tokens, vocabulary). */
function lastArgMax(logits) {
  const row = logits.data.subarray(-logits.dims[2]);
  let best = 0;
  for (let index = 1; index < row.length; index += 1) if (row[index] > row[best]) best = index;
  return best;
}
