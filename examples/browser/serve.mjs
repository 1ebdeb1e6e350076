// Serves this folder, and an artefact's folder as /artefact/, to this machine alone.
//
//     node serve.mjs PATH/TO/artefact [port]
//
// Port 0 takes a free one; the address is the only line printed.

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize, resolve } from "node:path";

const [folder, port = "8000"] = process.argv.slice(2);
if (folder === undefined) {
  console.error("usage: node serve.mjs PATH/TO/artefact [port]");
  process.exit(2);
}

const here = import.meta.dirname;
const artefact = resolve(folder);
const prefix = "/artefact/";
const types = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

function fileOf(url) {
  // normalize() leaves no ".." at the start of an absolute path, so nothing above is reached.
  const path = normalize(decodeURIComponent(new URL(url, "http://localhost").pathname));
  if (path.startsWith(prefix)) return join(artefact, path.slice(prefix.length));
  return join(here, path === "/" ? "index.html" : path);
}

const server = createServer(async (request, response) => {
  try {
    const file = fileOf(request.url);
    const found = await stat(file);
    if (!found.isFile()) throw new Error("not a file");
    response.writeHead(200, {
      "Content-Type": types[extname(file)] ?? "application/octet-stream",
      "Content-Length": found.size,
      // Without these two a page gets no shared memory, and the runtime no threads.
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
    });
    if (request.method === "HEAD") response.end();
    else createReadStream(file).pipe(response);
  } catch {
    response.writeHead(404).end();
  }
});

server.listen(Number(port), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}/`);
});
